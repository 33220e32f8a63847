PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/installed  ## set up, then evaluate the bundled model and write runs/demo/report.html
	$(BIN)/zsmld demo

test: .venv/installed  ## set up, then the whole test suite, files shared by two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/installed  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zsmld needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev,export,web,notebooks,docs]'
	touch $@

clean:
	rm -rf .venv runs build dist *.egg-info
