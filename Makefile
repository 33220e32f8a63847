PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test acceptance docs notebooks reports soak check clean

demo: .venv/installed  ## set up, then evaluate the bundled model and write runs/demo/report.html
	$(BIN)/zsmld demo

test: .venv/installed  ## set up, then the whole test suite, files shared by two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

acceptance: .venv/installed  ## what runs for minutes: notebooks, the web page in Chromium, the documentation, faults, fuzzing, the wheel
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; } || { \
	  echo "make acceptance needs Chromium and its driver: apt-get install chromium chromium-driver"; [ "$$CHROMIUM" = optional ]; }
	@# A process each, for the fault tests fork; two at a time, and all of them whatever fails.
	printf '%s\n' tests/acceptance/test_*.py | OMP_NUM_THREADS=1 xargs -n 1 -P 2 $(BIN)/python -m pytest --timeout 900 --durations 3

docs: .venv/installed  ## build the documentation into site/, with no network; warnings are errors
	$(BIN)/mkdocs build --strict

notebooks: .venv/installed  ## run the notebooks and write what they show to docs/notebooks
	$(BIN)/python evaluation/render_notebooks.py

reports: .venv/installed  ## measure every report anew (about half a day), put its tables into README and docs, run the notebooks
	$(BIN)/python evaluation/make_reports.py

soak: .venv/installed  ## the fault tests in full (an hour or more), and their report; goes on where it was stopped
	$(BIN)/python evaluation/soak.py

check: .venv/installed  ## format, lint, types, and the suite (house rules, doctests, README, some guides) with coverage
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov zsmld --cov-report term:skip-covered --cov-fail-under 90

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zsmld needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev,export,web,notebooks,docs]'
	touch $@

clean:
	rm -rf .venv runs build dist site *.egg-info
