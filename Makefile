# Every target makes and reuses .venv; python3.11 or newer and pip are all it takes.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest

.PHONY: help install demo test lint bench fuzz clean

help:
	@echo "make demo     train a small GPT on real text with PyTorch and print what it writes"
	@echo "make test     run the tests, on all three frameworks"
	@echo "make lint     ruff, mypy, import-linter"
	@echo "make bench    measure against peers, in one run"
	@echo "make install  .venv with the three frameworks and the tools"

install: .venv/all

.venv/made:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'gptbridge needs Python 3.11 or newer')"
	$(PYTHON) -m venv .venv
	touch $@

.venv/torch: .venv/made pyproject.toml constraints.txt
	@echo "installing gptbridge with PyTorch"
	$(PIP) --editable ".[torch]"
	touch $@

.venv/all: .venv/torch
	@echo "installing PaddlePaddle, MindSpore and the tools"
	$(PIP) --editable ".[all,tensorboard,zh]" --group dev
	touch $@

demo: .venv/torch
	@$(BIN)/python examples/demo.py

test: .venv/all
	$(PYTEST)

lint: .venv/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/all
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/data.py

clean:
	rm -rf .venv runs
