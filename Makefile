# Every command of the project. `make evolve` on a fresh clone sets up what is missing and runs one evolution cycle.
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= embedded
SEED ?=
WORKERS ?= 2

BIN := $(VENV)/bin
# A team's books lie in PostgreSQL (docs/operations.md, Team): with a driver, and without a file that says that they are there.
MLFLOW_TRACKING_URI ?= sqlite:///mlruns/mlflow.db
ifeq ($(filter postgresql%,$(MLFLOW_TRACKING_URI)),)
DB := mlruns/mlflow.db
EXTRAS := dev
else
DB := team-books
EXTRAS := dev,team
endif
# Set-up is done once per content of these two files, wherever the virtual environment lies.
STAMP := $(VENV)/.genevolve-$(shell cat pyproject.toml requirements-nodeps.txt | sha256sum | cut -c1-12)$(filter-out dev,$(EXTRAS))

export PATH := $(abspath $(BIN)):$(PATH)
export PYTHONPATH := $(CURDIR)/src:$(CURDIR)
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS := 120
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_TRACKING_URI
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TRANSFORMERS_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# glibc gives every big tensor's pages back and faults them in again, a quarter of a training step's time: keep them.
export MALLOC_MMAP_THRESHOLD_ := 1073741824
export MALLOC_TRIM_THRESHOLD_ := 1073741824
# Idle threads sleep instead of spinning: on a busy machine two spinning teams of threads starve each other.
export OMP_WAIT_POLICY := passive

.PHONY: help setup team-books evolve test test-slow faults check ui serve deploy stop clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(STAMP) $(DB)  ## virtual environment, pinned install, MLflow database

$(STAMP): pyproject.toml requirements-nodeps.txt
	@test -f $@ || { echo "Setting up $(VENV) (some minutes, once) ..."; \
	  test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install -q -e '.[$(EXTRAS)]' && \
	  $(BIN)/python -m pip install -q --no-deps -r requirements-nodeps.txt && \
	  rm -f $(VENV)/.genevolve-*; }
	@touch $@

$(DB): | $(STAMP)
	@$(BIN)/python -m genevolve.tracking

evolve: setup  ## one evolution cycle, end to end (SEED=n, PROFILE=embedded|tiny)
	@$(BIN)/python -m genevolve evolve --profile $(PROFILE) $(if $(SEED),--seed $(SEED))

test: setup  ## the tests, but for the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

test-slow: setup  ## the tests that only a long path proves: two machines, several processes at once
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m 'slow and not faults'

faults: setup  ## every stage by every fault: kills, full disks, locked and torn files (docs/operations.md)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m faults --durations=0 --durations-min=1

check: setup  ## style, types, layers
	$(BIN)/ruff check src flows tests benchmarks
	$(BIN)/ruff format --check src flows tests benchmarks
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

ui: setup  ## MLflow's pages on this machine, port 5000
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_BACKEND_STORE_URI="$$MLFLOW_TRACKING_URI" $(BIN)/mlflow ui --workers 1 \
	  --host 127.0.0.1 --port 5000 --artifacts-destination mlruns/artifacts

serve: setup  ## Prefect's server, work pools, a worker and MLflow's pages, in the background (POOL=gpu-process-pool: that pool's worker)
	@$(BIN)/python -m genevolve serve $(if $(POOL),--pool $(POOL) --no-pages)

deploy: setup  ## register the deployments of prefect.yaml on that server
	@$(BIN)/python -m genevolve deploy

stop: setup  ## stop what `make serve` started, and nothing else
	@$(BIN)/python -m genevolve stop

clean:  ## remove what runs leave behind; the ledger, reports, DVC's cache and the MLflow history stay
	rm -rf build data reports/latest.json .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src flows tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
