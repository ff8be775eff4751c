# The tools of the project. "make demo" and "make test" need nothing but make and Python 3.10 or later.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# How many test processes at once: live tests start real servers, so no more than a small machine bears.
WORKERS ?= 2
PYTEST ?=
checked := src tests $(if $(wildcard bench/*.py),bench)

.PHONY: help install demo test lint matrix reference bench clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: $(STAMP) ## the environment .venv, from pinned versions

$(STAMP): pyproject.toml scripts/make-environment $(wildcard constraints/*.txt)
	scripts/make-environment $(VENV)
	@touch $@

demo: install ## the main job on a private server, ending with the named cause
	$(BIN)/pgvacancy demo

test: install ## everything: distribution packages, lint, all tests
	scripts/distribution-packages
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST)

lint: install ## ruff, mypy, import contracts
	$(BIN)/ruff check $(checked) scripts/link-package scripts/reference.py
	$(BIN)/mypy $(checked)
	$(BIN)/lint-imports --no-cache

matrix: install ## the tests marked "matrix" on PostgreSQL 13 to 18
	scripts/matrix $(MAJORS)

reference: install ## docs/reference, written from the code
	$(BIN)/python scripts/reference.py

bench: install ## measurements, printed as tables
	$(BIN)/python -m bench

clean: ## remove what make made
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
