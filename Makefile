# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` need nothing but Python 3.10 or newer: they set up what is missing (tools/bootstrap.py).
# PYTHON names another interpreter, ARGS goes to pytest or the benchmark: make test ARGS="tests/engine -k clip"

PYTHON ?= python3
ARGS ?=
BOOTSTRAP = @$(PYTHON) tools/bootstrap.py

.PHONY: help demo test test-gpu gpu bench lint type format clean

help:
	@echo "make demo       train a CLIP on drawn pictures, end on a report page"
	@echo "make test       linters, type checker and the whole test suite"
	@echo "make test-gpu   the tests that need an NVIDIA GPU"
	@echo "make gpu        those tests, a memory checker and the bench table on one card, in ten minutes"
	@echo "make bench      time and memory of the losses beside their peers (clipkit bench)"
	@echo "make lint | type | format | clean"

demo test test-gpu gpu bench lint type format:
	@command -v $(PYTHON) >/dev/null || { echo "clipkit: no $(PYTHON) found: install Python 3.10 to 3.13 or name one: make $@ PYTHON=python3.12" >&2; exit 1; }
	$(BOOTSTRAP) $@ -- $(ARGS)

clean:
	rm -rf build dist .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info clipkit/_native*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
