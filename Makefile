# make demo   set up, then search on generated rows (no data needed)
# make test   set up, then everything that CI runs
# make        the same as make demo
#
# PYTHON=/path/to/python chooses the interpreter; any of 3.11 to 3.14 will do.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
FITS := import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	command -v $$python >/dev/null && $$python -c '$(FITS)' 2>/dev/null && echo $$python && break; done)

# Spinning OpenMP threads on busy cores are many times slower than sleeping ones.
export OMP_WAIT_POLICY := passive
export GOMP_SPINCOUNT := 0

.PHONY: demo test install check-python clean
demo: install
	$(BIN)/dalil run pipelines/gallery/quickstart.yaml

test: install $(VENV)/.dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadgroup

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-torchrec.txt pyproject.toml | check-python
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c '$(FITS)' || { echo "$(VENV) was made by another Python: rm -r $(VENV), then again" >&2; exit 1; }
	$(BIN)/pip install --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --disable-pip-version-check --no-deps -r requirements-torchrec.txt
	$(BIN)/pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -c 'import torchrec'
	touch $@

$(VENV)/.dev-installed: requirements-dev.txt requirements-cluster.txt $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check -r requirements-dev.txt -r requirements-cluster.txt
	touch $@

check-python:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(FITS)' 2>/dev/null || { echo \
	"Dalil needs Python 3.11 to 3.14 with its venv module (Debian: apt-get install python3-venv); \
	found: $$(python3 --version 2>&1 || echo none). Name another with make PYTHON=..." >&2; exit 1; }

clean:
	rm -rf $(VENV) *.egg-info
