# PYTHON    interpreter to use: one inside a virtual environment is used as it is, any other makes .venv (default: python3)
# UPSTREAM  name, checkpoint or module:function to evaluate; without it superb-all runs on FBANK, star_mini_teacher and two of its students
# DATA      "mini" or a folder with corpora or manifests       TASKS  tasks to run (default: all)       OUT  results folder
# JOBS      tasks side by side without UPSTREAM (default: 2)     WORKERS  test files side by side (default: 2)
TORCH ?= 2.11.0
DATA ?= mini
TASKS ?= all
MINUTES ?= 2
JOBS ?= 2
WORKERS ?= 2

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
MINI := data/mini/README.md
CORPUS := $(if $(filter mini,$(DATA)),$(MINI))
CORPORA := $(if $(CORPUS),data/mini,$(DATA))
SHIPPED := fbank star_mini_teacher star_small star_mini
SCORES := $(or $(OUT),results/$(if $(CORPUS),mini,$(notdir $(DATA:%/=%))))
# runs/mini/best is named for its folder, or several students would share one place
RESULTS := $(or $(OUT),results/$(subst /,-,$(patsubst /%,%,$(patsubst runs/%,%,$(UPSTREAM:%/=%)))))

.PHONY: help setup test gpu-check lint wheel superb-all superb-shipped superb-one distill clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## (.*)/  \1|\2/' | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv (or use the active environment) and install the package with its test tools

$(STAMP): setup.cfg pyproject.toml
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	@echo "installing into $(VENV) (about two minutes the first time)"
	@$(PY) -c 'import torch, torchaudio' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check torch==$(TORCH) torchaudio==$(TORCH)
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[all,test]'
	@touch $(STAMP)

test: $(STAMP) ## run the test suite (nine minutes on 2 cores)
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -n $(WORKERS) --dist loadfile

gpu-check: $(STAMP) ## what to run first on a machine with a GPU: recipes and encoding against the CPU, ten minutes
	@$(PY) -c 'import sys, torch; n = torch.cuda.device_count(); sys.exit(not n)' || \
	{ echo "gpu-check: torch sees no GPU here, so nothing was checked on one; make test runs the same code on the CPU"; exit 0; } && \
	$(PY) -m pytest tests/test_gpu.py -m gpu -rs --durations=5

lint: $(STAMP) ## ruff (check, format) and mypy
	@$(PY) -c 'import ruff, mypy' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

wheel: $(STAMP) ## build the wheel and try it where only the base requirements are
	$(PY) .ci/wheel.py

superb-all: $(STAMP) ## FBANK, the shipped teacher and two students on every task, and a table (with UPSTREAM= DATA= OUT=: that one, there)
	@$(MAKE) --no-print-directory $(if $(UPSTREAM),superb-one,superb-shipped)

superb-shipped: $(CORPUS)
	@status=0; for model in $(SHIPPED); do \
	  $(PY) -m eval run --upstream $$model --tasks $(TASKS) --data $(CORPORA) --jobs $(JOBS) --out $(SCORES)/$$model > /dev/null || status=$$?; \
	  [ $$status -le 1 ] || exit $$status; \
	done; \
	$(PY) -m eval report $(SHIPPED:%=$(SCORES)/%) --out $(SCORES)/table \
	&& echo "the table is in $(SCORES)/table.md and table.html (mini scores compare with one another, not with published ones)" >&2 \
	&& exit $$status

superb-one: $(CORPUS)
	@status=0; $(PY) -m eval run --upstream $(UPSTREAM) --tasks $(TASKS) --data $(CORPORA) --out $(RESULTS) || status=$$?; \
	[ $$status -le 1 ] || exit $$status; \
	$(PY) -m eval report $(RESULTS) --out $(RESULTS)/table && exit $$status

superb-%: $(STAMP) ## one task, for example superb-ks
	@$(MAKE) --no-print-directory superb-all TASKS=$*

$(MINI): $(STAMP)
	$(PY) -m eval.data.mini data/mini

distill: $(STAMP) $(MINI) ## distil a star_mini student from the shipped teacher for MINUTES minutes (default 2)
	$(PY) -m star_upstream distill star_mini data.train=data/mini training.minutes=$(MINUTES) --out $(DISTILLED)
	@echo "the student is in $(DISTILLED)/best; score it with: make superb-all UPSTREAM=$(DISTILLED)/best" >&2

clean: ## remove what the other targets made, the environment and files of yours among it excepted
	@test -x $(PY) || { echo "make setup first: without the package nobody knows what make made" >&2; exit 1; }
	$(PY) -m eval.clean data/mini runs/mini results/mini
