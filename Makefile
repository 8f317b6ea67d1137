# Targets for a development environment: python3 -m venv .venv && .venv/bin/pip install -e '.[dev]'
PYTHON ?= .venv/bin/python

.PHONY: test test-all lint types mutation notebooks exactness bench

test:
	$(PYTHON) -m pytest -q -n auto

test-all:  # half precision, other frameworks and layouts, rarer optimizers, killed processes
	$(PYTHON) -m pytest -q -n auto -m ""

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m pyright --pythonpath $(PYTHON)

mutation:
	$(PYTHON) tests/mutation.py

notebooks:
	$(PYTHON) notebooks/run.py

exactness:
	$(PYTHON) -m benchmarks.exactness

bench:
	$(PYTHON) -m benchmarks --json
	$(PYTHON) -m benchmarks.table
