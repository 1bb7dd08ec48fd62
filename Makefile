# make demo   everything from nothing: environment, sample corpus, training on two processes, text, diagnosis, questions
# make test   everything from nothing: environment, the whole test suite
# make check  formatting, lint, types and the fast tests, before every commit
#             (make types, make fast: these alone)
# make chaos  real runs, killed and stopped, also on two machines that this one plays: does every one go on?
#             (about two hours)
# make soak   a real run for 45 minutes: are memory, files and speed flat, and what does saving cost?
# make faults models with one planted fault each, diagnosed blind
# make bench  how fast: beside the machine's limits and transformers (an hour), beside another trainer (PEER=../minimind; two to
#             three hours, with the search for its best settings)
#
# All build .venv on first use. To use the environment you are in (Kaggle, conda) instead:
#   pip install -r requirements-dev.txt && make demo PY=python

PYTHON ?= python3
VENV := .venv
# two at a time, since many tests start two processes; tests/conftest.py says which of them stay together
PARALLEL := -n 2 --dist loadscope

ifdef PY
READY :=
else
PY := $(VENV)/bin/python
READY := $(VENV)/installed
READY_DEV := $(VENV)/installed-dev
READY_BENCH := $(VENV)/installed-bench
endif

.PHONY: demo test check types fast chaos soak faults bench

demo: $(READY)
	@$(PY) -m training.demo

test: $(READY_DEV)
	@$(PY) -m pytest $(PARALLEL)

check: $(READY_DEV)
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(MAKE) --no-print-directory -j 2 -Oline types fast

types: $(READY_DEV)
	@$(PY) -m pyright --pythonpath "$$($(PY) -c 'import sys; print(sys.executable)')"

fast: $(READY_DEV)
	@$(PY) -m pytest $(PARALLEL) -m "not slow"

chaos: $(READY)
	@$(PY) -m stress.chaos --work runs/chaos

soak: $(READY)
	@$(PY) -m stress.soak --work runs/soak

faults: $(READY)
	@$(PY) -m stress.faults --output runs/faults

bench: $(READY_BENCH)
	@$(PY) -m benchmarks.speed --work runs/speed $(if $(PEER),--peer $(PEER)) $(BENCH)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 14) else \
	  f"make: $(PYTHON) is Python {v[0]}.{v[1]}, and 3.10 to 3.14 is needed: make PYTHON=python3.12 demo")'
	@echo "creating the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: no venv module: install python3-venv"; exit 1; }

$(VENV)/installed: requirements.txt constraints.txt | $(VENV)/bin/python
	@echo "installing requirements.txt into $(VENV) (1 to 3 minutes, more where torch comes with CUDA)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

$(VENV)/installed-dev: requirements.txt requirements-dev.txt constraints.txt | $(VENV)/bin/python
	@echo "installing requirements-dev.txt into $(VENV) (1 to 3 minutes, more where torch comes with CUDA)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@touch $@ $(VENV)/installed

$(VENV)/installed-bench: requirements.txt requirements-dev.txt requirements-bench.txt constraints.txt | $(VENV)/bin/python
	@echo "installing requirements-bench.txt into $(VENV) (1 to 3 minutes, more where torch comes with CUDA)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt -c constraints.txt
	@touch $@ $(VENV)/installed $(VENV)/installed-dev
