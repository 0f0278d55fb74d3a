# Two commands on a fresh machine: `make demo` and `make test`. Each creates .venv, installs the
# pinned dependencies and runs. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test lint clean

demo: $(VENV)/.run
	$(BIN)/python -m chopjax.demo --workdir demo

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

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
	rm -rf $(VENV) build dist *.egg-info
