# Every target sets up what it needs from nothing: Python 3.11 or newer and make are enough.
# Extra wheel sources (a CPU build of torch, a mirror) are pip's own settings: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

TORCH    := torch==2.13.0
MODEL    ?= smollm2-135m
DB       ?= .quickstart/db
LIMITS   ?= --max-model-len 512 --max-num-batched-tokens 512 --max-num-seqs 16
GPU_WORKLOAD ?= closed:concurrency=32,requests=320,prompt=512-1536,output=64-192
WORKLOAD ?= closed:concurrency=4,requests=40,prompt=64-256,output=16-64,seed=0

# Rooms whose tests time nothing, and so run two at a time; those that start engines keep a file in one process, which shares them.
TOGETHER := $(addprefix tests/,adapters benchmarks catalog cli dbstore engines imports kv predict prices report scripts searching simulation tracing)

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-fast lint format types docs dist clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the CPU engine and all development tools

# torch goes first, so that the engine's installation takes the CPU build that is already there.
$(STAMP): pyproject.toml scripts/drop_broken_packages.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; pass PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[cpu,dev]'
	$(BIN)/python scripts/drop_broken_packages.py torchvision torchaudio torchcodec
	touch $@

quickstart: $(STAMP) ## ask for a 70 B model on four H200s, then measure a small model here and run the real engine beside it
	$(BIN)/dooly simulate llama-3.1-70b --hardware h200 --tensor-parallel-size 4 --workload '$(GPU_WORKLOAD)'
	$(BIN)/dooly trace $(MODEL)
	dtype=$$($(BIN)/python -c 'from dooly.device import native_dtype; print(native_dtype())') && \
	$(BIN)/dooly profile $(MODEL) --db $(DB) --dtype $$dtype $(LIMITS) && \
	$(BIN)/dooly validate $(MODEL) --db $(DB) --dtype $$dtype $(LIMITS) --workload '$(WORKLOAD)'

test: $(STAMP) ## run all tests that need no GPU; those of the passes must reach every branch of them
	$(BIN)/python -m pytest tests/passes --cov
	$(BIN)/python -m pytest -m 'not gpu and not engine' -n 2 $(TOGETHER) tests/validation
	$(BIN)/python -m pytest -m 'engine and not gpu' -n 2 --dist loadfile $(TOGETHER)
	$(BIN)/python -m pytest -m 'engine and not gpu' tests/validation
	$(BIN)/python -m pytest -m 'not gpu' --ignore=tests/passes --ignore=tests/validation $(TOGETHER:%=--ignore=%)

test-fast: $(STAMP) ## run the tests that need neither a GPU nor the engine
	$(BIN)/python -m pytest -m 'not gpu and not engine'

lint: $(STAMP) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## apply the format and the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## check types
	$(BIN)/mypy

docs: $(STAMP) ## build the site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict # the variable silences what its theme says of successors

dist: $(STAMP) ## build the sdist, and from it the wheel, into dist/
	$(BIN)/python -m build --no-isolation

clean: ## remove what the other targets made, but for .venv
	rm -rf .quickstart build dist site catboost_info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
