.DEFAULT_GOAL := help
.PHONY: help setup demo test check fmt lint types arch bench clean
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Torch is the user's own; the tests use it when its CPU build can be had, and say so when not.
TORCH  ?= torch==2.13.0

help: ## List the commands
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/.base: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	-$(BIN)/python -m pip install --quiet '$(TORCH)'
	@touch $@

setup: $(VENV)/.dev ## Make .venv with everything the tests need

demo: $(VENV)/.base ## Split traffic between two real classifiers over a real table
	$(BIN)/python examples/traffic_split.py

test: $(VENV)/.dev ## Tests and doctests
	$(BIN)/python -m pytest

check: lint types arch test ## Everything CI runs

fmt: $(VENV)/.dev ## Format and fix
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: $(VENV)/.dev ## Style
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(VENV)/.dev ## Types
	$(BIN)/mypy

arch: $(VENV)/.dev ## Import directions
	$(BIN)/lint-imports

bench: $(VENV)/.dev ## One benchmark: make bench NAME=external_throughput
	$(BIN)/python -m benchmarks $(NAME)

clean: ## Remove .venv and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache dist
