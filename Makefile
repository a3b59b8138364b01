# PYTHON    interpreter to use: one inside a virtual environment is used as it is, any other makes .venv (default: python3)
# UPSTREAM  name, checkpoint or module:function to evaluate; without it superb-all runs on FBANK and the shipped models
# DATA      "mini" or a folder with corpora or manifests       TASKS  tasks to run (default: all)       OUT  results folder
TORCH ?= 2.11.0
DATA ?= mini
TASKS ?= all
MINUTES ?= 2

ifdef PYTHON
  ENVIRONMENT := $(shell $(PYTHON) -c 'import sys; print(sys.prefix if sys.prefix != sys.base_prefix else "")')
else
  ENVIRONMENT := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX))
endif
PYTHON ?= python3
VENV := $(or $(ENVIRONMENT),.venv)
PY := $(VENV)/bin/python
STAMP := $(VENV)/.star_upstream-$(subst /,_,$(CURDIR))
DISTILLED := runs/mini

.PHONY: help setup test superb-all superb-shipped superb-one distill clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## (.*)/  \1|\2/' | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv (or use the active environment) and install the package with its test tools

$(STAMP): setup.cfg pyproject.toml
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	@echo "installing into $(VENV) (about two minutes the first time)"
	@$(PY) -c 'import torch, torchaudio' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check torch==$(TORCH) torchaudio==$(TORCH)
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $(STAMP)

test: $(STAMP) ## run the test suite (under 6 minutes on 2 cores)
	$(PY) -m pytest tests

superb-all: $(STAMP) ## mini corpora, a short distillation, FBANK and the shipped models on every task, a table (with UPSTREAM=: that one)
	@$(MAKE) --no-print-directory $(if $(UPSTREAM),superb-one,superb-shipped)

superb-shipped: distill
	@set -e; for model in fbank star_mini_teacher star_mini $(DISTILLED)/best; do \
	  name=$$(case $$model in $(DISTILLED)/best) echo distilled;; *) echo $$model;; esac); \
	  $(PY) -m eval run --upstream $$model --tasks $(TASKS) --data $(DATA) --out results/mini-$$name; \
	done
	@$(PY) -m eval report results/mini-fbank results/mini-star_mini_teacher results/mini-star_mini results/mini-distilled --out results/mini

superb-one:
	$(PY) -m eval run --upstream $(UPSTREAM) --tasks $(TASKS) --data $(DATA) --out $(or $(OUT),results/$(notdir $(UPSTREAM)))
	$(PY) -m eval report $(or $(OUT),results/$(notdir $(UPSTREAM)))

superb-%: $(STAMP) ## one task, for example superb-ks
	@$(MAKE) --no-print-directory superb-all TASKS=$*

data/mini/README.md: $(STAMP)
	$(PY) -m eval.corpora.mini data/mini

distill: $(STAMP) data/mini/README.md ## distil a star_mini student from the shipped teacher for MINUTES minutes (default 2)
	$(PY) -m star_upstream distill star_mini data.train=[data/mini] training.minutes=$(MINUTES) --out $(DISTILLED)

clean: ## remove what the other targets made, the environment excepted
	rm -rf data/mini runs/mini results/mini results/mini-*
