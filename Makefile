# `make demo` and `make test` set up all they need: a virtual environment in .venv, unless one is active ($VIRTUAL_ENV)
# or PYTHON=/path/to/python names another. BOOTSTRAP is the Python that makes .venv.
BOOTSTRAP ?= python3
ifdef PYTHON
  INTERPRETER := $(shell command -v $(PYTHON))
  BOOTSTRAP := $(PYTHON)
else ifdef VIRTUAL_ENV
  INTERPRETER := $(VIRTUAL_ENV)/bin/python
  BOOTSTRAP := $(VIRTUAL_ENV)/bin/python
else
  INTERPRETER := .venv/bin/python
endif

WORKERS ?= 2
ARGS ?=
# One thread a process: the tests and the demo run two processes.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint format

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## install everything (about 2.2 GB the first time; says so first)
	@$(BOOTSTRAP) scripts/setup_env.py "$(INTERPRETER)"

demo: setup ## train, evaluate and predict on the embedded data set, no hub needed
	@$(INTERPRETER) scripts/demo.py $(ARGS)

test: setup ## the whole test suite; ARGS="-k metrics" picks tests, WORKERS=n
	@HF_HUB_OFFLINE=1 $(INTERPRETER) -m pytest -n $(WORKERS) --no-header -rs $(ARGS)

test-fast: setup ## the tests without those that take minutes
	@HF_HUB_OFFLINE=1 $(INTERPRETER) -m pytest -n $(WORKERS) --no-header -rs -m "not slow" $(ARGS)

lint: setup ## ruff, mypy and the one-way imports; all of them, whichever fails
	@status=0; bin="$(dir $(INTERPRETER))"; \
	$(INTERPRETER) -m ruff check --output-format concise . || status=1; \
	$(INTERPRETER) -m ruff format --check . || status=1; \
	$(INTERPRETER) -m mypy || status=1; \
	$${bin}lint-imports --no-logo --cache-dir .cache/import_linter || status=1; \
	exit $$status

format: setup ## put the code into shape
	$(INTERPRETER) -m ruff check --fix .
	$(INTERPRETER) -m ruff format .
