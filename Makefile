# `make sample` animates the bundled pictures; `make test` runs every test; `make small-world` trains the bundled model
# anew (hours). Each makes .venv when it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: sample test lint clean small-world

sample: .venv/.installed
	$(BIN)/python sample.py --config configs/sample/default.py

test: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --dist loadfile

small-world: .venv/.installed
	$(BIN)/python -m assets.make_small_world

lint: .venv/.installed-test
	$(BIN)/ruff check .

clean:
	rm -rf .venv .cache output

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python >= 3.11 is wanted, {sys.executable} is {v[0]}.{v[1]}. Mend: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/.installed: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -r requirements.txt
	@touch $@

.venv/.installed-test: requirements-test.txt requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -r requirements-test.txt
	@touch .venv/.installed $@
