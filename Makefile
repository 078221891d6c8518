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
DEVICE ?= cpu
LOWEST_TORCH ?= 2.6.0
ARGS ?=
# One thread a process: the tests and the demo run two processes.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-clip test test-fast test-lowest coverage docs docs-serve lint format check-code check-format check-types check-imports

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## install everything (about 2.2 GB the first time; says so first)
	@$(BOOTSTRAP) scripts/setup_env.py "$(INTERPRETER)"

demo: setup ## train, evaluate and predict on the embedded data set, no hub needed
	@$(INTERPRETER) scripts/demo.py $(ARGS)

demo-clip: setup ## render clips (synthetic), extract, train, predict an unseen clip over time; gets 0.2 GB more
	@$(INTERPRETER) scripts/demo_clip.py $(ARGS)

test: setup ## the whole test suite; ARGS="-k metrics" picks tests, WORKERS=n, DEVICE=cuda builds models there
	@DEEPMLF_TEST_DEVICE=$(DEVICE) HF_HUB_OFFLINE=1 $(INTERPRETER) -m pytest -n $(WORKERS) --dist worksteal --no-header -rs \
	  --durations=25 --durations-min=4 $(ARGS)

test-fast: setup ## the tests without those that take minutes
	@HF_HUB_OFFLINE=1 $(INTERPRETER) -m pytest -n $(WORKERS) --dist worksteal --no-header -rs -m "not slow" $(ARGS)

test-lowest: ## test-fast on the lowest versions of pyproject.toml, in .cache/lowest; LOWEST_TORCH=2.13.0 for another
	@$(BOOTSTRAP) scripts/lowest_env.py .cache/lowest $(LOWEST_TORCH)
	@HF_HUB_OFFLINE=1 .cache/lowest/bin/python -m pytest -n $(WORKERS) --dist worksteal --no-header -rs -m "not slow" $(ARGS)

coverage: setup ## the whole suite with branch coverage, subprocesses included; the pages are in .cache/coverage/html
	@HF_HUB_OFFLINE=1 $(INTERPRETER) -m pytest -n $(WORKERS) --dist worksteal --no-header -rs \
	  --cov --cov-report=term:skip-covered --cov-report=html:.cache/coverage/html $(ARGS)

docs: setup ## the site in .cache/site: these pages and the API from the docstrings; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(INTERPRETER) -m mkdocs build --strict
	@echo "make docs: .cache/site/index.html"

docs-serve: setup ## the site at http://127.0.0.1:8000, made again as files change
	@NO_MKDOCS_2_WARNING=1 $(INTERPRETER) -m mkdocs serve --strict

# The checks run one after the other whichever fails. They install nothing: pre-commit runs them too.
CHECKS := check-code check-format check-types check-imports
lint: setup ## ruff, mypy and the one-way imports; all of them, whichever fails
	@$(MAKE) --no-print-directory --keep-going --jobs=1 $(CHECKS)

check-code:
	@$(INTERPRETER) -m ruff check --output-format concise .

check-format:
	@$(INTERPRETER) -m ruff format --check .

check-types:
	@$(INTERPRETER) -m mypy

check-imports:
	@"$(dir $(INTERPRETER))lint-imports" --no-logo --cache-dir .cache/import_linter

format: setup ## put the code into shape
	$(INTERPRETER) -m ruff check --fix .
	$(INTERPRETER) -m ruff format .
