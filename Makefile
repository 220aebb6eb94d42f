.DEFAULT_GOAL := help
.PHONY: help setup demo test test-clients check fmt lint types arch bench bench-rivals clean
VENV   ?= .venv
BIN    := $(VENV)/bin
# The first Python that is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Torch and what runs language models belong to those who use them. The tests take them along, and do without them
# if need be: make test TORCH=
TORCH  ?= torch==2.13.0
# Tests that run at once: many of them wait.
JOBS   ?= 2

# Nothing here may touch a model registry or a workspace that the environment names, nor report to MLflow.
unexport MLFLOW_TRACKING_URI MLFLOW_REGISTRY_URI AIQUERY_HOME
export MLFLOW_DISABLE_TELEMETRY := true

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# An environment that make has not made is used as it is, and left alone.
$(VENV)/.base: pyproject.toml
	@if test ! -e $(VENV); then \
	  test -n '$(PYTHON)' || { echo 'aiquery needs Python 3.11 or newer: make PYTHON=/path/to/python3.11' >&2; exit 1; }; \
	  echo 'Setting up $(VENV): a minute or two.' && $(PYTHON) -m venv $(VENV) && touch $(VENV)/.made-by-make; fi
	@if test -e $(VENV)/.made-by-make; \
	  then $(BIN)/python -m pip install --quiet --editable '.[demo]' && touch $@; \
	  else echo '$(VENV) was here before: it is used as it is. For a new one: make VENV=.venv-new ...'; fi

$(VENV)/.dev: $(VENV)/.base
	@if test -e $(VENV)/.made-by-make; then \
	  echo 'Adding what the tests need to $(VENV): a minute or two.' && \
	  $(BIN)/python -m pip install --quiet --editable '.[test,lint]' && \
	  { test -z '$(TORCH)' || { $(BIN)/python -m pip install --quiet '$(TORCH)' && \
	    $(BIN)/python -m pip install --quiet --editable '.[test-llm]'; } || true; } && touch $@; fi

setup: $(VENV)/.dev ## Make .venv with everything the tests need

demo: $(VENV)/.base ## Split traffic between two real classifiers over a real table
	@$(BIN)/python examples/traffic_split.py

test: $(VENV)/.dev ## Tests and doctests
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("torch") and u.find_spec("llguidance")))' || \
	  printf '\n*** PyTorch, or what runs language models on it, is not installed (no wheel could be had): NOT tested. ***\n\n'
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: lint types arch test ## Everything CI runs

fmt: $(VENV)/.dev ## Format and fix
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: $(VENV)/.dev ## Style
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(VENV)/.dev ## Types
	$(BIN)/mypy

arch: $(VENV)/.dev ## Import directions
	$(BIN)/lint-imports

test-clients: ## Databricks' and LangChain's own clients, in an environment of their own
	@test -e .venv-clients/.installed || { echo 'Setting up .venv-clients: three minutes.' && \
	  $(PYTHON) -m venv .venv-clients && \
	  .venv-clients/bin/python -m pip install --quiet -r tests/clients/requirements.txt && \
	  .venv-clients/bin/python -m pip install --quiet --no-deps --editable . && touch .venv-clients/.installed; }
	.venv-clients/bin/python -m pytest tests/clients

bench: $(VENV)/.dev ## One benchmark: make bench NAME=external_throughput
	$(BIN)/python -m benchmarks $(NAME)

bench-rivals: $(VENV)/.dev ## Other libraries beside ours; installs them below ~/.cache
	$(BIN)/python -m benchmarks rivals --install

clean: ## Remove caches, and .venv if make has made it
	@if test -e $(VENV)/.made-by-make; then rm -rf $(VENV); fi
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache dist
