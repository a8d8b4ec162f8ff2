# make demo | test | test-all | budgets | lint | clean.   PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_DIR ?= runs/demo
# Plain CPU unless told otherwise: with libtpu installed JAX would search for a TPU at every start.
TEST_ENV := JAX_PLATFORMS=cpu

.PHONY: demo test test-all budgets lint clean help

help:
	@sed -n '1p' Makefile | sed 's/^# //'

# The stamps hold the date of what they installed: a second `make` installs nothing.
$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ssl_jax needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.11 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m ssl_jax train --config=configs/simclr_fashion_mnist.py --workdir=$(DEMO_DIR)
	$(BIN)/python -m ssl_jax evaluate --workdir=$(DEMO_DIR)

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal --durations=25

test-all: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal -m 'slow or not slow'

# What the flagship configs cost when compiled for TPU slices; minutes for each.
budgets: $(VENV)/.installed-test
	$(TEST_ENV) $(BIN)/python -m benchmarks.budgets

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) .jax_cache build *.egg-info
