PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test check format clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[documentation,dev]"
	touch $@

quickstart: $(VENV)/installed  ## train and compare four architectures on a real language model
	$(BIN)/sae-bench run quickstart

test: $(VENV)/installed  ## all tests, on two processes
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

check: $(VENV)/installed  ## formatter, linter, type checker, layer contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV)
