# make install   a virtual environment in .venv with the pinned packages
# make demo      the whole road on 2,000 synthetic patients
# make test      all tests
# make lint      formatting, lint, types, who may import whom

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export TOKENIZERS_PARALLELISM := false

.PHONY: install demo test lint

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	pip install --quiet --upgrade pip
	pip install --quiet torch==2.13.0
	pip install --quiet --editable ".[dev]"
	touch $@

demo: install
	bash scripts/demo.sh

test: install
	pytest

lint: install
	ruff format --check src tests scripts
	ruff check src tests scripts
	mypy
	lint-imports
