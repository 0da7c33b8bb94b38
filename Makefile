# `make demo` and `make test` need Python (3.11 or newer) and nothing else: each makes its environment if it is missing.

REQUIREMENTS ?= requirements.txt
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV = .venv$(patsubst requirements%,%,$(basename $(REQUIREMENTS)))
RUN = $(VENV)/bin/python

# Of `make test`: a worker a core, four at most (each takes 1.5 GB); WORKERS=0 keeps the tests in one process.
WORKERS ?= logical
# The shuffle is always the same; `pytest` alone takes another one each time.
PYTEST = $(RUN) -m pytest --randomly-seed=2206

.PHONY: demo test test-slow test-apps lint docs

demo: $(VENV)/installed
	$(RUN) tools/demo.py

test: $(VENV)/installed
	$(PYTEST) --numprocesses $(WORKERS) --maxprocesses 4 --dist worksteal --durations=15

test-slow: $(VENV)/installed
	$(PYTEST) -m 'slow and not apps'

test-apps: $(VENV)/installed
	$(PYTEST) -m apps

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# Every page, link and anchor is checked: a warning is an error. The site is build/site/index.html.
docs: $(VENV)/installed .venv-docs/installed
	$(RUN) docs/pages.py
	.venv-docs/bin/mkdocs build --quiet --strict

.venv-docs/installed: requirements-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --requirement requirements-docs.txt
	touch $@

$(VENV)/installed: $(REQUIREMENTS) requirements-common.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement $(REQUIREMENTS)
	$(RUN) -m pip install --quiet --no-deps --editable .
	touch $@
