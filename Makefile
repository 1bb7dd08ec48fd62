# make demo   everything from nothing: environment, sample corpus, training on two processes, text, verdict
# make test   everything from nothing: environment, the whole test suite
#
# Both build .venv on first use. To use the environment you are in (Kaggle, conda) instead:
#   pip install -r requirements-dev.txt && make demo PY=python

PYTHON ?= python3
VENV := .venv

ifdef PY
READY :=
else
PY := $(VENV)/bin/python
READY := $(VENV)/installed
READY_DEV := $(VENV)/installed-dev
endif

.PHONY: demo test

demo: $(READY)
	@$(PY) -m training.demo

test: $(READY_DEV)
	@$(PY) -m pytest

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
	  f"make: $(PYTHON) is Python {v[0]}.{v[1]}, and 3.10 to 3.12 is needed: make PYTHON=python3.11 demo")'
	@echo "creating the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: no venv module: install python3-venv"; exit 1; }

$(VENV)/installed: requirements.txt | $(VENV)/bin/python
	@echo "installing requirements.txt into $(VENV) (1 to 3 minutes, more where torch comes with CUDA)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	@echo "installing requirements-dev.txt into $(VENV) (1 to 3 minutes, more where torch comes with CUDA)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ $(VENV)/installed
