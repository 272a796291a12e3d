# Right after a clone, `make train` and `make test` create .venv, install there, and then do their job.
# They need only make and Python 3.11 to 3.13.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help train test lint format docs gpu

# The Python that creates .venv: the first of these that is 3.11 to 3.13.
PYTHON ?= python3 python3.13 python3.12 python3.11
# `make gpu` uses the machine's own Python, whose torch fits the driver.
GPU_PYTHON ?= python3
OUT ?= results/gpu
# Options of every pip install here; PIP_QUIET= shows what pip is doing.
PIP_QUIET ?= -qq

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
# The constraints also apply to build backends: there pip up to 25.2 reads the first variable, later pip the second.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt .venv/bin/python -m pip

help:  ## print this list
	@echo "make TARGET [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "The first call creates .venv and installs there (a few minutes). PYTHON=python3.12 make test uses that Python;"
	@echo "to change it later, remove .venv first. constraints.txt pins every version."

train: .venv/.base  ## train one run: make train ARGS='model=gpt2 trainer.max_steps=200'
	.venv/bin/python train.py $(ARGS)

test: .venv/.dev  ## run the tests, one process per core: make test ARGS='-k norm'; slow tests: ARGS='-m slow -n 0'
	.venv/bin/python -m pytest -q -n auto --dist worksteal $(ARGS)

lint: .venv/.dev  ## check style and formatting, change nothing
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: .venv/.dev  ## fix style and formatting where ruff can
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

docs: .venv/.base  ## regenerate the parts of docs/ that come from the code
	PYTHONPATH=. .venv/bin/python docs/generate.py

gpu:  ## on a CUDA machine: run GPU tests, measure speed; writes to OUT=results/gpu, installs nothing
	@$(GPU_PYTHON) -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null \
		|| { echo "make gpu: $(GPU_PYTHON) sees no CUDA device (torch.cuda.is_available() is not true)"; exit 1; }
	@mkdir -p '$(OUT)'; status=0; set -x; \
	PYTHONPATH=. $(GPU_PYTHON) -m pytest -m gpu -q || status=1; \
	PYTHONPATH=. $(GPU_PYTHON) benchmark.py task=training out='$(OUT)' || status=1; \
	for model in llama3_1b phi3_mini; do for compile in false true; do \
		PYTHONPATH=. $(GPU_PYTHON) benchmark.py model=$$model compile=$$compile new_tokens=[100,480] batch=1 rounds=3 \
			out='$(OUT)'/$${model}_compile_$$compile || status=1; \
	done; done; \
	exit $$status

# A stamp is written when its install is complete, so an interrupted install runs again.
.venv/.base: .venv/.python pyproject.toml constraints.txt
	@echo "installing ablate into .venv (a few minutes the first time)"
	@$(PIP) install $(PIP_QUIET) -e .
	@touch $@

.venv/.dev: .venv/.python pyproject.toml constraints.txt
	@echo "installing ablate and the test tools into .venv (a few minutes the first time)"
	@$(PIP) install $(PIP_QUIET) -e '.[dev]'
	@touch .venv/.base $@

# .venv/.incomplete marks a .venv whose creation was interrupted. A .venv without it is used as it is.
.venv/.python:
	@if [ -e .venv/.incomplete ]; then rm -rf .venv; fi
	@if [ ! -x .venv/bin/python ]; then \
		for python in $(PYTHON); do \
			if $$python -c '$(SUPPORTED)' 2>/dev/null; then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "make: needs Python 3.11, 3.12 or 3.13; tried: $(PYTHON). Name one: PYTHON=/path/to/python3.12 make test"; \
			exit 1; \
		fi; \
		echo "creating .venv with $$found"; \
		mkdir -p .venv && touch .venv/.incomplete && $$found -m venv .venv && rm .venv/.incomplete; \
	fi
	@.venv/bin/python -c '$(SUPPORTED)' || { echo "make: .venv holds a Python outside 3.11 to 3.13; remove it"; exit 1; }
	@touch $@
