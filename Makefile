# make demo   set up, then search on generated rows (no data needed)
# make test   set up, then everything that CI runs; on the cluster of KUBECONFIG too, if DALIL_TEST_CLUSTER=1
# make kind   with docker: a cluster on this machine, with Dalil in it
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

.PHONY: demo test kind install check-python clean
demo: install
	$(BIN)/dalil run pipelines/gallery/quickstart.yaml

test: install $(VENV)/.dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@test -n "$$DALIL_TEST_CLUSTER" || echo "DALIL_TEST_CLUSTER is not set: THE TESTS ON A CLUSTER ARE SKIPPED"
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --no-loadscope-reorder --durations 40 --durations-min 10

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

kind:
	@command -v docker kind kubectl >/dev/null && test $$(command -v docker kind kubectl | wc -l) = 3 || { echo \
	"make kind needs docker, kind and kubectl" >&2; exit 1; }
	docker build --tag dalil $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) .
	kind get clusters | grep -qx dalil || kind create cluster --name dalil
	kind load docker-image dalil --name dalil
	kubectl --context kind-dalil apply -f manifests/base/namespace.yaml -f manifests/base/crd.yaml
	kubectl --context kind-dalil wait --for=condition=Established crd/searchpipelines.dalil.dev
	kubectl --context kind-dalil apply -k manifests/overlays/kind
	kubectl config set-context kind-dalil --namespace=dalil
	for part in statefulset/postgresql deployment/mlflow deployment/dalil-operator; do \
		kubectl --context kind-dalil rollout status $$part --timeout=300s || exit 1; done

check-python:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(FITS)' 2>/dev/null || { echo \
	"Dalil needs Python 3.11 to 3.14 with its venv module (Debian: apt-get install python3-venv); \
	found: $$(python3 --version 2>&1 || echo none). Name another with make PYTHON=..." >&2; exit 1; }

clean:
	rm -rf $(VENV) *.egg-info
