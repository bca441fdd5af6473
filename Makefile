# `make demo` and `make test` are all a newcomer needs; each makes .venv if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test browser lint bench clean

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Prevox needs Python 3.11 or newer; run make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dicom,dask,test]'
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	touch $@

demo: $(VENV)/.core
	$(BIN)/prevox demo --out demo

# Two processes with one thread each, since a second thread speeds up few tests. Files stay whole, as their fixtures are
# costly, and in order, as the slow end-to-end ones then do not come last. WORKERS=0 is one process.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# for the tests of the report in a browser, which are skipped where there is none
browser:
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends chromium; } || \
	  echo "no Chromium and no way to install it here: the tests of the report in a browser will be skipped"

lint: $(VENV)/.test
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/mae_step.py
	$(BIN)/python benchmarks/glmae_step.py
	$(BIN)/python benchmarks/sliding_window.py

clean:
	rm -rf $(VENV) demo
