# Every target sets itself up on a machine that has Python >= 3.11 and a package index.
# Another interpreter: make PYTHON=python3.12 sweep. Other sweeps: make sweep ARGS="+suite=cifar dry=true".

PYTHON ?= python3
ARGS ?= +suite=digits
BIN := .venv/bin
READY := .venv/.ready
PARTIAL := .venv/.partial

.PHONY: sweep test test-fast test-slow lint bench clean
.NOTPARALLEL:

sweep: $(READY)
	@$(BIN)/python -m bench.sweep $(ARGS)

# A process for each core: a test takes one thread.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8

test: $(READY)
	@$(PYTEST) -m "not slow"

# At every save: what takes a minute and a half.
test-fast: $(READY)
	@$(PYTEST) -m "not slow" tests/fast tests/property

# Long trainings, kills in numbers: before a release.
test-slow: $(READY)
	@$(PYTEST) -m slow

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY)
	@mkdir -p results/bench
	@$(BIN)/python -m pytest tests/benchmark --benchmark-only --benchmark-quiet --benchmark-json=results/bench/speed.json
	@$(BIN)/python -m bench.speed results/bench/speed.json

# The environment and every cache; results/ stays (delete results/<suite> and results/.store by hand).
clean:
	@rm -rf .venv build dist *.egg-info .ruff_cache .pytest_cache .hypothesis .benchmarks outputs
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last. A set-up that was interrupted leaves $(PARTIAL) instead, and the next one starts from nothing.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no '$(PYTHON)' on this machine; install Python >= 3.11 or name one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "fewstep needs Python >= 3.11, $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12" >&2; exit 2; }
	@if [ -e $(PARTIAL) ]; then rm -rf .venv; fi
	@mkdir -p .venv && rm -f $@ && touch $(PARTIAL)
	@echo "setting up .venv (a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@mv $(PARTIAL) $@ && touch $@
