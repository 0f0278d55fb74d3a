# Two commands on a fresh machine: `make demo` and `make test`. Each creates .venv, installs the
# pinned dependencies and runs. PYTHON chooses the interpreter (3.11 or newer), WORKERS how many
# processes test: of 2 cores one more, for some tests wait.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 3

.PHONY: demo test tests thorough lint clean

# From `chopjax run` on it is as for any other model.
demo: export JAX_PLATFORMS ?= cpu
demo: demo/parent/config.json
	$(BIN)/chopjax run --config configs/demo.py --workdir demo/run

# The demo's parent, text and tokenizer: made once.
demo/parent/config.json: | $(VENV)/.run
	$(BIN)/python -m chopjax.demo demo/text
	$(BIN)/chopjax prepare demo/text/train.jsonl --tokenizer demo/text/tokenizer --output demo/tokens/train
	$(BIN)/chopjax prepare demo/text/held_out.jsonl --tokenizer demo/text/tokenizer --output demo/tokens/held_out
	$(BIN)/chopjax train --config configs/demo_parent.py --workdir demo/parent-run
	$(BIN)/chopjax export demo/parent-run demo/parent

# Linters beside the tests: mypy takes a minute, of one core.
test: $(VENV)/.test
	$(MAKE) --jobs=2 lint tests

tests: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Of the tests marked thorough, which `make test` leaves out, one part of so many.
PART ?= 1/1
thorough: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --thorough $(PART)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What a user installs.
$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/.made
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

# That, and what the tests check against: torch, transformers' models, linters.
$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/.made
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@ $(VENV)/.run

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "chopjax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Choose another: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache demo build dist *.egg-info
