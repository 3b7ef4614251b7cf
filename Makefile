# heedful: set-up and everyday commands. Each target makes the environment it needs in .venv when it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test floor lint bench gpu study small-studies docs tables clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: $(VENV)/.core  ## compare seven mechanisms on real text, then two on find-the-block; prints where the reports are
	$(BIN)/heedful compare recipes/demo.toml
	$(BIN)/heedful compare recipes/demo-find-the-block.toml

test: $(VENV)/.dev  ## run all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The other dependencies stay as they are, so only transformers itself is exchanged.
floor: $(VENV)/.floor  ## run the Hugging Face tests with the oldest transformers that is supported
	PYTHONPATH=$(abspath $(VENV))/floor $(BIN)/python -m pytest -n 2 --dist worksteal tests/hf

lint: $(VENV)/.dev  ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.dev  ## everything that is measured on a CPU: time, memory, data, strategies, faults; takes hours, writes results/
	$(BIN)/python -m benchmarks.layers --device cpu
	$(BIN)/python -m benchmarks.multi_token --device cpu
	$(BIN)/python -m benchmarks.model_step --device cpu
	$(BIN)/python -m benchmarks.tile_steps
	$(BIN)/python -m benchmarks.loss_memory --device cpu
	$(BIN)/python -m benchmarks.profile_step --device cpu
	$(BIN)/python -m benchmarks.loop_overhead
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.preparation
	$(BIN)/python -m benchmarks.strategies
	$(BIN)/python -m benchmarks.fault_campaign

gpu: $(VENV)/.dev  ## CUDA tests, benchmarks and profile, and the study if CORPUS is given; refuses without a CUDA device
	@$(BIN)/python -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else \
	'make gpu needs a CUDA device, and torch %s sees none here; make test and make bench run on the CPU.' % torch.__version__)"
	$(BIN)/python -m pytest -m cuda tests/cuda
	$(BIN)/python -m pytest tests/ops/test_triton_mixer.py
	$(BIN)/python -m benchmarks.layers --device cuda
	$(BIN)/python -m benchmarks.multi_token --device cuda
	$(BIN)/python -m benchmarks.multi_token --device cuda --head-dim 64
	$(BIN)/python -m benchmarks.model_step --device cuda
	$(BIN)/python -m benchmarks.loss_memory --device cuda
	$(BIN)/python -m benchmarks.profile_step --device cuda
	$(BIN)/heedful bench step recipes/demo.toml --arm multi-token --train.device cuda --train.precision bfloat16 \
	--train.batch_size 32 --train.context_length 512 --model.max_positions 512 --model.hidden_size 512 --model.num_heads 8
	@if [ -n "$(CORPUS)" ]; then $(MAKE) --no-print-directory study CORPUS="$(CORPUS)"; \
	else echo "For the language-model study: make study CORPUS=FOLDER with train.txt, valid.txt and test.txt in it."; fi

# One call ends itself after nine minutes, with an error until everything is done, and the next goes on where it was. How many
# runs at a time are fastest depends on the GPU; it is no part of a recipe and may change between calls.
WORKERS ?= 8
TEXTS = --data.corpus "$(CORPUS)/train.txt" --data.valid_corpus "$(CORPUS)/valid.txt" --data.test_corpus "$(CORPUS)/test.txt"
FURTHER = $(if $(wildcard $(CORPUS)/wikitext.txt),--task.further_tests.wikitext "$(CORPUS)/wikitext.txt")
NEEDS_TEXTS = @test -n "$(CORPUS)" || { echo "make $@ needs CORPUS=FOLDER with train.txt, valid.txt and test.txt in it."; exit 2; }
# What is left of the nine minutes, for a comparison that begins when another has ended within them. The first, one epoch, is
# done after about three calls on an H100; the second is the same for fifteen epochs.
SLICE = --workers $(WORKERS) --minutes $$(( (end - $$(date +%s)) / 60 )).5

study: $(VENV)/.core  ## the papers' experiments for a GPU, on the texts in CORPUS, in slices of ten minutes
	$(NEEDS_TEXTS)
	end=$$(( $$(date +%s) + 510 )); \
	$(BIN)/heedful compare recipes/language-models-one-epoch.toml $(SLICE) $(TEXTS) $(FURTHER) && \
	$(BIN)/heedful compare recipes/language-models.toml $(SLICE) $(TEXTS) $(FURTHER) && \
	$(BIN)/python -m scripts.find_the_block --paper-size $(SLICE) && \
	$(BIN)/heedful compare recipes/needles.toml $(SLICE) $(TEXTS)

small-studies: $(VENV)/.core  ## the same for two CPU cores, about three hours; long bAbI as well with BABI=ARCHIVE
	$(NEEDS_TEXTS)
	$(BIN)/heedful compare recipes/language-models-small.toml --workers 2 $(TEXTS) $(FURTHER)
	$(BIN)/heedful compare recipes/learning-rate-tolerance-small.toml --workers 2 $(TEXTS)
	$(BIN)/python -m scripts.find_the_block --workers 2
	$(BIN)/heedful compare recipes/needles-small.toml --workers 2 $(TEXTS)
	$(if $(BABI),$(BIN)/heedful compare recipes/long-babi-small.toml --workers 2 --task.archive "$(BABI)" $(TEXTS))

docs: $(VENV)/.docs  ## build the documentation into site/
	$(BIN)/python -m mkdocs build --strict

tables: $(VENV)/.core  ## judge the claims by results/ and rewrite what is generated in README and docs
	$(BIN)/python -m scripts.claims --results
	$(BIN)/python -m scripts.tables

clean:  ## remove environment and builds; runs and results stay
	rm -rf $(VENV) site build dist .pytest_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	'heedful needs Python 3.11 or newer; this is %d.%d. Try make PYTHON=python3.11 ...' % sys.version_info[:2])"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.core

$(VENV)/.floor: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/floor \
	"transformers==$(shell sed -n 's/^hf = \["transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml).*"
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e ".[docs]"
	@touch $@ $(VENV)/.core
