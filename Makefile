# `make train` and `make test` are all that a fresh machine needs (Python 3.11 and an index of packages).
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.PHONY: train test quick lint bench install clean

install: $(STAMP)

# The constraints keep pip from replacing the CPU build of torch by one with gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch" "torchvision"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

train: $(STAMP)
	$(BIN)/fedmpt train --dp-epsilon 8 --secagg masking

# One thread: tests are many small computations, and two that wait for each other on busy cores stall for seconds.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

quick: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,bench]"
	$(BIN)/python -m experiments.bench

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
