# What a developer types. `make setup` first; the Debian packages that tests and DeepSpeed want are named in .ci/run.
PYTHON = .venv/bin/python
TORCH = 2.13.0 # what constraints.txt names
EXTRAS = $(shell cat .ci/extras)

.PHONY: help setup test slow soak check constraints ci
help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1: /p' Makefile

setup: ## .venv with every extra that the tests use, in the versions that CI tests
	python3 -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e ".[$(EXTRAS)]"

test: ## the tests, without the slow ones
	$(PYTHON) -m pytest

slow: ## training in several processes, and every command of docs/training.md
	$(PYTHON) -m pytest -m slow

soak: ## half an hour of 64 clients, a third of them misbehaving
	VITA_MCTP_SOAK_SECONDS=1800 VITA_MCTP_SOAK_CLIENTS=64 $(PYTHON) -m pytest -s -m slow tests/serving/test_soak.py

check: ## style, types, and which level may import which
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

constraints: ## constraints.txt anew: the newest versions that pyproject.toml allows, and one torch
	python3 -m venv build/resolver
	build/resolver/bin/pip install -q --dry-run --report build/resolver/report.json torch==$(TORCH) -e ".[$(EXTRAS)]"
	python3 .ci/constraints.py build/resolver/report.json > constraints.txt

ci: ## everything that CI runs, in fresh environments (about 15 minutes)
	.ci/run
