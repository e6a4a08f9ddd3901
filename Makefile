# Needs Python 3.11 or newer, make, and a package registry that pip can reach.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RECORDED := ../shared/data/binance

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench faults lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: $(INSTALLED) ## create .venv with the locked dependencies and the mdp command

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is Python " \
	  + sys.version.split()[0] + "; 3.11 or newer is needed: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## run the main job on embedded backends and show the bars
	@export MDP_HOME=.demo; \
	if [ -d "$(RECORDED)" ]; then \
	  $(BIN)/mdp run "$(RECORDED)"/spot_*.ndjson.gz --as binance_spot && \
	  $(BIN)/mdp bars BTCUSDT --interval 2s --limit 8; \
	else \
	  $(BIN)/mdp run --provider synthetic --for 20s && \
	  $(BIN)/mdp bars SPY --interval 2s --limit 8; \
	fi && echo "stored in $$MDP_HOME/store.db; look further with: MDP_HOME=.demo $(BIN)/mdp --help"

check: setup ## lint, formatting, types, layers, house rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/house

test: check ## everything in check, then all tests and a short fault campaign
	$(BIN)/pytest -q -n $(JOBS) --durations=12 $(wildcard tests/unit tests/property tests/conformance \
	  tests/integration tests/load tests/faults)

bench: setup ## both sides of every speed claim, on this machine
	$(BIN)/python -m benchmarks

faults: setup ## the long fault campaign: 200 seeded runs
	MDP_FAULT_RUNS=200 $(BIN)/pytest -q -n $(JOBS) tests/faults

lock: ## renew requirements.lock (needs uv)
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-header --no-emit-index-url --no-config --quiet -o requirements.lock

clean: ## remove what tools and builds left behind; .venv and .mdp stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
