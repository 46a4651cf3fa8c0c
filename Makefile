VENV   ?= .venv
# The first interpreter on the PATH that is new enough; `python3` where none is, to say so below.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check
# One thread per worker: two workers that each take every core slow each other down.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv demo test test-all format lint types check docs bench bench-budget bench-accept zoo zoo-sample clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-12s %s\n", $$1, $$2}'

venv: $(READY)  ## Create .venv with all that development needs

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(f"lwdna needs Python >= 3.11, $(PYTHON) is {v}: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev,demo,train]'
	@touch $@

demo: $(READY)  ## The main job: widen, score and shrink a network, and show the result
	$(BIN)/python -m benchmarks.demo

test: $(READY)  ## Quick tests
	$(PYTEST)

test-all: $(READY)  ## Quick tests and the full network list
	$(PYTEST) -m 'slow or not slow'

format: $(READY)  ## Format and fix what ruff can fix
	$(BIN)/ruff format && $(BIN)/ruff check --fix

lint: $(READY)  ## Formatting and ruff's rules
	$(BIN)/ruff format --check --quiet && $(BIN)/ruff check --quiet

types: $(READY)  ## mypy, strict, on lwdna/
	$(BIN)/mypy lwdna

check: lint types test  ## Everything that has to pass before a commit

# Not --quiet: it lets warnings pass.
docs: $(READY)  ## The documentation as a site, out/site/index.html; warnings are errors
	$(BIN)/python -m mkdocs build --strict

bench: $(READY)  ## Speed and memory against a peer and floors; then the tables and plots
	-$(BIN)/python -m benchmarks.bm_compile
	-$(BIN)/python -m benchmarks.bm_scaling
	-$(BIN)/python -m benchmarks.bm_scoring
	-$(BIN)/python -m benchmarks.bm_selection
	-$(BIN)/python -m benchmarks.bm_latency
	-$(BIN)/python -m benchmarks.bm_throughput
	-$(BIN)/python -m benchmarks.bm_files
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.report

zoo: $(READY)  ## Every model of timm and torchvision; goes on where it stopped
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.zoo
	$(BIN)/python -m benchmarks.plots --only zoo
	$(BIN)/python -m benchmarks.zoo.report

zoo-sample: $(READY)  ## 40 models of different architectures
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.zoo --sample 40 --no-peer --redo all --output out/zoo-sample.jsonl

bench-budget: $(READY)  ## FLOPs and params of selections, compared with the committed record
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bm_budget

bench-accept: $(READY)  ## Make today's figures the record
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bm_budget --accept

clean:  ## Remove caches and build products; the environment stays
	rm -rf build dist htmlcov .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache && find . -path './$(VENV)' -prune -o -name __pycache__ -prune -exec rm -rf {} +
