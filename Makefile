# `make demo` and `make test` need Python (3.11 or newer) and nothing else: each makes its environment if it is missing.

REQUIREMENTS ?= requirements.txt
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV = .venv$(patsubst requirements%,%,$(basename $(REQUIREMENTS)))
RUN = $(VENV)/bin/python

.PHONY: demo test test-slow test-apps lint

demo: $(VENV)/installed
	$(RUN) tools/demo.py

test: $(VENV)/installed
	$(RUN) -m pytest --randomly-seed=2206 --durations=15  # a fixed shuffle; `pytest` alone takes another one each time

test-slow: $(VENV)/installed
	$(RUN) -m pytest -m 'slow and not apps' --randomly-seed=2206

test-apps: $(VENV)/installed
	$(RUN) -m pytest -m apps --randomly-seed=2206

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

$(VENV)/installed: $(REQUIREMENTS) requirements-common.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement $(REQUIREMENTS)
	$(RUN) -m pip install --quiet --no-deps --editable .
	touch $@
