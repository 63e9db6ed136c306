# Two commands matter: `make demo` and `make test`. Both set up .venv from requirements.lock first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help venv browser demo test test-full check fuzz bench parity docs lock clean

help:   ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 10

venv: $(STAMP)  ## build .venv from the pinned lock file
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Eutectic needs Python 3.10 or newer; set PYTHON=/path/to/python3") if sys.version_info < (3, 10) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(STAMP)

browser:  ## install Chromium, which a test of the report drives (Debian, as root)
	command -v chromium > /dev/null || { apt-get update -q && apt-get install -y --no-install-recommends chromium; }

demo: venv  ## build real experts, merge them, measure them, draw them (demo-output/)
	$(BIN)/eutectic demo --out demo-output

test: venv  ## run the tests
	$(BIN)/python -m pytest -n 2

test-full: venv  ## the tests with a hundred kills, and ten minutes of fuzzing
	EUTECTIC_KILLS=100 $(BIN)/python -m pytest -n 2
	$(BIN)/python tests/fuzz/run.py --seconds 100

check: venv  ## lint, types, layers, documentation, half a minute of fuzzing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(BIN)/python tests/fuzz/run.py --seconds 5

fuzz: venv  ## fuzz the readers of strangers' bytes for ten minutes
	$(BIN)/python tests/fuzz/run.py --seconds 100

docs: venv  ## regenerate the generated pages
	$(BIN)/python docs/generate.py

bench: venv  ## speed and memory against mergekit, sd-mecha and the copy bound
	$(BIN)/python benchmarks/speed/run.py

parity: venv  ## every method and option against mergekit 0.1.5, number by number
	$(BIN)/python benchmarks/speed/peers.py mergekit
	$(BIN)/python benchmarks/parity/run.py
	$(BIN)/python benchmarks/parity/recipes.py

lock: venv  ## write requirements.lock from the present .venv
	$(BIN)/python -m pip freeze --all --exclude pip --exclude-editable --exclude eutectic | sed s/+cpu// > requirements.lock

clean:  ## remove everything that the other targets made
	rm -rf $(VENV) demo-output benchmarks/.work .pytest_cache .ruff_cache .hypothesis
