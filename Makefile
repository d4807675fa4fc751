# make install   a virtual environment in .venv with the pinned packages
# make demo      the whole road on 2,000 synthetic patients
# make results   the tables of docs/results.md, on open data that lies in DATA (default ../shared/data)
# make test      all tests
# make lint      formatting, lint, types, who may import whom

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export TOKENIZERS_PARALLELISM := false

.PHONY: install install-unsloth install-deepspeed demo results test lint

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	pip install --quiet --upgrade pip
	pip install --quiet torch==2.13.0
	pip install --quiet --editable ".[dev]"
	touch $@

# Optional, for training.framework: unsloth on a machine without a GPU; see docs/unsloth.md for one with.
install-unsloth: install
	pip install --quiet --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9 trl==1.15.0

# Optional, for configs/accelerate/deepspeed_zero2.yaml and deepspeed_zero3.yaml.
install-deepspeed: install
	pip install --quiet deepspeed==0.19.8

demo: install
	bash scripts/demo.sh

results: install
	bash scripts/results.sh

test: install
	pytest

lint: install
	ruff format --check src tests scripts benchmarks
	ruff check src tests scripts benchmarks
	mypy
	lint-imports
