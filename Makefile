# Every target builds .venv first where it is missing or older than the requirements.
#   make env PYTHON=python3.13                                          another Python
#   make test VENV=.venv-oldest CONSTRAINTS=constraints/oldest.txt      another environment, with the oldest packages
#   make test WORKERS=4                                                 more processes; each needs a core and about 5 GB
VENV ?= .venv
CONSTRAINTS ?=
WORKERS ?= 2
PY := $(VENV)/bin/python
DEARLI := $(VENV)/bin/dearli
PACKAGES := $(VENV)/.packages
STAMP := $(VENV)/.installed
export PYTHON ?= python3
DOCS_VENV ?= .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed

.PHONY: env packages demo ladder test test-slow lint format bench docs clean

env: $(STAMP)  ## the environment, with the project in it

packages: $(PACKAGES)  ## the environment without the project

$(PACKAGES): requirements.txt requirements-dev.txt scripts/make_env.sh scripts/install_detectron2.sh $(CONSTRAINTS)
	bash scripts/make_env.sh $(VENV) $(CONSTRAINTS)
	touch $@

$(STAMP): export PYTHONWARNINGS = ignore:Editable installation
$(STAMP): $(PACKAGES) pyproject.toml setup.py
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP)  ## the DEARLi ladder on the generated data, minutes on a CPU
	$(DEARLI) demo

ladder: $(STAMP)  ## the same with three seeds, mean and standard deviation
	$(DEARLI) demo --out output/ladder --seeds 3 --iterations 600

test: $(STAMP)  ## fast tests with a coverage report, in WORKERS processes
	$(PY) -m pytest --numprocesses $(WORKERS) --dist loadscope --cov --cov-report=term:skip-covered

test-slow: $(STAMP)  ## short trainings that show an effect
	$(PY) -m pytest -m slow

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) tests/check_docstrings.py
	$(PY) -m mypy

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(STAMP)  ## speed and memory against peers, as ratios of one run
	$(PY) -m benchmarks.core
	$(PY) -m benchmarks.read_out
	$(PY) -m benchmarks.matching
	$(PY) -m benchmarks.step
	$(PY) -m benchmarks.regions
	$(PY) -m benchmarks.dyce
	$(PY) -m benchmarks.segkc_step
	$(PY) -m benchmarks.summed_losses

docs: $(DOCS_STAMP)  ## the documentation site in site/, strictly; its environment is its own
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build

$(DOCS_STAMP): requirements-docs.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

clean:
	rm -rf $(VENV) $(DOCS_VENV) site .pytest_cache .ruff_cache .mypy_cache .coverage build dearli_d2.egg-info
