# `make demo` and `make test` need Python (3.11 or newer) and nothing else: each makes its environment if it is missing.

REQUIREMENTS ?= requirements.txt
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV = .venv$(patsubst requirements%,%,$(basename $(REQUIREMENTS)))
RUN = $(VENV)/bin/python

.PHONY: demo test test-slow lint

demo: $(VENV)/installed
	$(RUN) tools/demo.py

test: $(VENV)/installed
	$(RUN) -m pytest --ignore=tests/deployment --ignore=tests/recipe --ignore=tests/ablation
	$(RUN) -m pytest tests/ablation tests/recipe
	$(RUN) -m pytest tests/deployment  # apart: in one process with the recipe tests they crash

test-slow: $(VENV)/installed
	$(RUN) -m pytest -m slow

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

$(VENV)/installed: $(REQUIREMENTS) requirements-common.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement $(REQUIREMENTS)
	$(RUN) -m pip install --quiet --no-deps --editable .
	touch $@
