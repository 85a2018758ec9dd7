# The front door. Everything is installed into $(VENV); nothing else is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 3
ROUNDS ?= 5
CASES ?=
SECONDS ?= 180
SEED ?= 1
# Without bytecode, every process and every test file would be compiled anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test coverage lint format readme bench torture soak clean

help:  ## Show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 10

install: $(VENV)/.installed  ## Install the program into $(VENV)

demo: $(VENV)/.installed  ## Watch a whole run against the sandbox: interrupted, resumed, published
	@$(BIN)/bge-downloader demo

test: $(VENV)/.developing  ## Run every test
	@$(BIN)/python -m compileall -q downloader state
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

coverage: $(VENV)/.developing  ## Run every test and tell which lines none of them runs
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term:skip-covered

lint: $(VENV)/.developing  ## Check style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(VENV)/.developing  ## Put the code into its usual form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

readme: $(VENV)/.developing  ## Write the documents' generated tables anew
	@$(BIN)/python tests/readme.py
	@$(BIN)/python tests/example_settings.py --write
	@$(BIN)/python tests/reliability.py --write

bench: $(VENV)/.developing  ## Measure against the peers on the PATH; CASES="http tls" for some rows
	@$(BIN)/python -m tests.bench --rounds $(ROUNDS) $(or $(CASES),--write)

torture: $(VENV)/.developing  ## Crash at every point, try every fault; writes the figures of docs/reliability.md
	@BGE_TEST_TORTURE=1 BGE_TEST_LONG=1 BGE_TEST_WRITE_FIGURES=1 BGE_TEST_SOAK_SECONDS=$(SECONDS) \
		$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

soak: $(VENV)/.developing  ## Let a service live in trouble, for SECONDS=180 or longer; SEED=2 for another life
	@BGE_TEST_TORTURE=1 BGE_TEST_SOAK_SECONDS=$(SECONDS) BGE_TEST_SOAK_SEED=$(SEED) \
		$(BIN)/python -m pytest tests/torture/test_soak.py

clean:  ## Remove what was made here
	rm -rf $(VENV) .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.developing: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"  # the first with --group
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@
