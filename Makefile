# Everything a person or a CI does here. `make help` lists it; CONTRIBUTING.md says more.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Images of containers often set it. The tests start the program hundreds of times, and each start would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
SOURCES := src tests $(if $(wildcard tools/*.py tools/*/*.py),tools)
# What is passed on: make test ARGS='-k lock', make bench ARGS=--help
ARGS ?=
# As many processes as the machine has cores; tests/conftest.py says which tests stay together.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

STATEWARD_DATA ?= .stateward
STATEWARD_LISTEN ?= 127.0.0.1:8774

.PHONY: help setup dev run demo check static pyright mypy ruff layers test bench lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing: Debian packages, and .venv with the locked run-time libraries
	@tools/setup.sh

dev: ## The same, with the test tools and the openstack client
	@tools/setup.sh --dev

run: ## Set up if needed, then serve at STATEWARD_LISTEN with its data in STATEWARD_DATA
	@tools/setup.sh
	@if ! [[ -x $(BIN)/openstack ]]; then \
	  echo "(No OpenStack client yet? In another terminal, 'make dev' installs one as $(BIN)/openstack.)"; fi
	@exec $(BIN)/stateward serve --data "$(STATEWARD_DATA)" --listen "$(STATEWARD_LISTEN)" --test-guest $(ARGS)

demo: dev ## Show it at work, on this machine
	@exec $(BIN)/python -m tools.demo $(ARGS)

# Side by side: each type checker keeps one core busy, pyright the longest.
static: dev
	@$(MAKE) --jobs=2 --output-sync=target pyright mypy ruff layers

pyright:
	@echo "==> pyright";        $(BIN)/pyright

mypy:
	@echo "==> mypy";           $(BIN)/mypy $(SOURCES)

ruff:
	@echo "==> ruff check";     $(BIN)/ruff check --quiet
	@echo "==> ruff format";    $(BIN)/ruff format --check --quiet

layers:
	@echo "==> import layers";  $(BIN)/lint-imports --no-logo

check: static ## Lint, types, layers, and the fast tests
	@echo "==> fast tests";     $(BIN)/pytest $(PARALLEL) -m "not guests and not slow" $(ARGS)

test: static ## Lint, types, layers, and all the tests, those with real guests too
	@echo "==> all tests";      $(BIN)/pytest $(PARALLEL) $(ARGS)

bench: dev ## Measure it
	@exec $(BIN)/python -m tools.bench $(ARGS)

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links $(LOCK_ARGS)
lock: dev ## Write the locks anew from pyproject.toml; LOCK_ARGS=--upgrade takes newer versions
	@echo "==> requirements-build.lock"
	@$(COMPILE) --group pyproject.toml:build -o requirements-build.lock >/dev/null
	@echo "==> requirements.lock"
	@$(COMPILE) -c requirements-build.lock -o requirements.lock pyproject.toml >/dev/null
	@echo "==> requirements-dev.lock"
	@$(COMPILE) -c requirements-build.lock -c requirements.lock --group pyproject.toml:build \
	  --group pyproject.toml:dev -o requirements-dev.lock pyproject.toml >/dev/null

clean: ## Remove .venv and what the tools left; the data of `make run` stays
	@rm -rf .venv .setup.lock build dist src/*.egg-info htmlcov .coverage .coverage.* .hypothesis \
	  .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
