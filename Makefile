PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INTEROP := .venv-interop
LIBRARIES := tests/interop/constraints.txt
DEVICE ?= cpu
OUT ?= results

.PHONY: quickstart test test-interop test-faults soak bench check format clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[documentation,dev]"
	touch $@

# Without dependencies, since all are in the list; it leaves out what does not import beside
# this torch.
$(INTEROP)/installed: pyproject.toml $(LIBRARIES)
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/pip install --quiet --disable-pip-version-check --constraint $(LIBRARIES) "torch==2.13.0"
	$(INTEROP)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement $(LIBRARIES)
	$(INTEROP)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

quickstart: $(VENV)/installed  ## train and compare four architectures on a real language model
	$(BIN)/sae-bench run quickstart

test: $(VENV)/installed  ## all tests, on two processes
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

test-interop: $(INTEROP)/installed  ## formats against SAELens, dictionary_learning and sparsify
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(INTEROP)/bin/pytest --disable-warnings tests/interop

test-faults: $(VENV)/installed  ## kill and damage runs, over and over: about 15 minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m faults tests/faults --timeout 1800

soak: $(VENV)/installed  ## a long run of small steps, looked at for growth: about 25 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.soak results/runs/soak

# SPEED, CURVES and EXTRACTION take further arguments, as SPEED="--d-sae 2304 4608 --rounds 9";
# see --help of each.
BENCHMARK = OMP_NUM_THREADS=1 $(BIN)/python -m
BENCHED = --device $(DEVICE) --out $(OUT)

bench: $(VENV)/installed $(INTEROP)/installed  ## speed and memory beside other libraries: hours
	$(BENCHMARK) benchmarks.speed --peers $(INTEROP)/bin/python $(BENCHED) $(SPEED)
	$(BENCHMARK) benchmarks.curves $(BENCHED) $(CURVES)
	$(BENCHMARK) benchmarks.extraction $(BENCHED) $(EXTRACTION)

check: $(VENV)/installed  ## formatter, linter, type checker, layer contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(INTEROP)
