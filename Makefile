# make demo    the embedded data set through the whole method, from a bare clone to the table
# make test    every test, from a bare clone
# make lint    ruff and mypy
# make bench   the CRF engine, sweeps and the mask stage against pydensecrf, a training step of RRM with and without its
#              labels, matting by kind, size and actors, on the photos of ../shared where they are; one alone, with
#              arguments: make bench BENCH='crf --photos 4'
# The environment is made once, in .venv, and again only when its requirements change.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
COMPARED := $(VENV)/.pydensecrf

.PHONY: demo test lint bench install compared clean

demo: install
	$(BIN)/python -m pmm_ray.run conf/recipe/demo.yaml conf/data/shapes.yaml

test: install compared
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install compared
	$(BIN)/python tests/benchmarks $(BENCH)

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(INSTALLED)

# The CRF package that tests and benchmarks compare with has to be compiled; without a compiler they say that they skip.
compared: install $(COMPARED)

$(COMPARED): pyproject.toml constraints.txt
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[pydensecrf]' \
	  && touch $(COMPARED) || echo "pydensecrf2 could not be compiled: comparisons with it are skipped"

clean:
	rm -rf $(VENV) build dist *.egg-info
