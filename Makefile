# Two commands matter: `make run` trains a small model here and now, `make test` checks everything.
# Both set up .venv first, once; nothing is downloaded twice.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUN_ID := quickstart-$(shell date -u +%Y%m%d-%H%M%S)

KILLS ?= 200
KEYS ?= 10000
# Test files at a time. One trainer of the tests takes up to two cores and half a GiB.
WORKERS ?= 2

# Hundreds of processes start in the tests: with bytecode that stays, each of them a quarter sooner.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test compiled lint types unit soak install dev bench pictures clean help

help:
	@echo "make run    set up .venv, train the quickstart preset, let it write a sample"
	@echo "make test   set up .venv, then lint, types and all tests"
	@echo "make lint   ruff only;  make types   mypy only;  make unit   the quick tests only"
	@echo "make soak   trainers killed at random moments (KILLS=200), random keys (KEYS=10000) and sizes (about an hour)"
	@echo "make pictures   draw the screens that README shows, from recorded runs"
	@echo "make bench  the benchmarks behind the figures in README and docs (about an hour)"
	@echo "make clean  remove .venv and caches (never runs/)"

run: install
	$(BIN)/gpuworkbench --headless --preset quickstart --run-id $(RUN_ID)
	$(BIN)/gpuworkbench sample $(RUN_ID) --tokens 80

test: dev lint types compiled
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Where PYTHONDONTWRITEBYTECODE is set, each of the tests' many processes would compile the whole package by itself.
compiled: dev
	$(BIN)/python -m compileall -q gpuworkbench

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/mypy

unit: dev compiled
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/unit tests/training

soak: dev
	GPUWORKBENCH_SOAK_KILLS=$(KILLS) $(BIN)/python -m pytest -s tests/process/test_random_kills.py
	GPUWORKBENCH_SOAK_KEYS=$(KEYS) $(BIN)/python -m pytest tests/tui/test_storm.py

bench: dev
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.quickstart
	$(BIN)/python -m benchmarks.event_replay
	$(BIN)/python -m benchmarks.step_time
	$(BIN)/python -m benchmarks.model_folders
	$(BIN)/python -m benchmarks.data_prepare
	$(BIN)/python -m benchmarks.data_loader
	$(BIN)/python -m benchmarks.curricula
	$(BIN)/python -m benchmarks.optimizers
	$(BIN)/python -m benchmarks.compare_load
	$(BIN)/python -m benchmarks.app_load

pictures: dev
	$(BIN)/python -m benchmarks.pictures

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gpuworkbench needs Python >= 3.11; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,hf,data]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
