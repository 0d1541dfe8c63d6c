# What a newcomer needs: `make up`. What a contributor needs: `make check test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Options for `braid up`, as in: make up ARGS="--port 9000 --workers 2"
ARGS ?=
# Narrows the tests, as in: make test TESTS=tests/unit
TESTS ?=

PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url

.DEFAULT_GOAL := help
.PHONY: help up setup dev test chaos check fmt lock clean

help: ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

up: setup ## Install what is missing, then run the whole mesh until Ctrl-C
	@exec $(BIN)/braid up $(ARGS)

setup: $(VENV)/.installed ## Make .venv and install the locked dependencies

dev: $(VENV)/.installed-dev ## The same, with the tools for development

test: dev ## Run every test against real servers
	$(BIN)/python -m pytest $(TESTS)

chaos: dev ## Kill services while streams run; see ARGS=--help
	$(BIN)/python -m tests.chaos $(ARGS)

check: dev ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: dev ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: dev ## Choose the dependencies' versions anew (UPGRADE=--upgrade takes the newest)
	$(COMPILE) $(UPGRADE) --extra build --extra local pyproject.toml -o deploy/requirements.lock
	$(COMPILE) $(UPGRADE) --extra dev -c deploy/requirements.lock pyproject.toml \
		-o deploy/requirements-dev.lock

clean: ## Remove .venv and every cache; the data folder stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache \
		build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is not there: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Braidstream needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V):" \
			"install one, then e.g. make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments:" \
			"install its venv module (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: deploy/requirements.lock pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) --require-hashes -r deploy/requirements.lock
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@$(BIN)/python -c 'from deploy.mesh.binaries import redis_server; redis_server()' 2>/dev/null \
		|| echo "note: no Redis for this Python; \`braid up\` needs redis-server or valkey-server on PATH"
	@touch $@

$(VENV)/.installed-dev: deploy/requirements-dev.lock $(VENV)/.installed
	$(PIP_INSTALL) --require-hashes -r deploy/requirements-dev.lock
	@touch $@
