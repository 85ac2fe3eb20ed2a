# Every target builds .venv first where it is missing or older than the requirements.
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: env demo ladder test test-slow lint format bench clean

env: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt scripts/make_env.sh scripts/install_detectron2.sh
	bash scripts/make_env.sh $(VENV)
	touch $@

demo: $(STAMP)  ## the DEARLi ladder on the generated data, minutes on a CPU
	$(PY) -W ignore -m dearli_d2.demo

ladder: $(STAMP)  ## the same with three seeds, mean and standard deviation
	$(PY) -W ignore -m dearli_d2.demo --out output/ladder --seeds 3 --iterations 600

test: $(STAMP)  ## fast tests with a coverage report
	$(PY) -m pytest --cov --cov-report=term:skip-covered

test-slow: $(STAMP)  ## short trainings that show an effect
	$(PY) -m pytest -m slow

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(STAMP)  ## speed and memory against peers, as ratios of one run
	$(PY) -W ignore -m benchmarks.core
	$(PY) -W ignore -m benchmarks.read_out
	$(PY) -W ignore -m benchmarks.matching
	$(PY) -W ignore -m benchmarks.step
	$(PY) -W ignore -m benchmarks.regions
	$(PY) -W ignore -m benchmarks.dyce
	$(PY) -W ignore -m benchmarks.segkc_step
	$(PY) -W ignore -m benchmarks.summed_losses

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .coverage
