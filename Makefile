# make quickstart | test | setup | check | docs | extras      Only PYTHON (3.11+) is needed beforehand.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p >/dev/null 2>&1 && \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
EXTRAS := $(VENV)/extras
EXTRAS_STAMP := $(EXTRAS)/.installed

.PHONY: setup quickstart test check docs extras gl

setup: $(STAMP) gl

quickstart: setup
	$(BIN)/wmpo run quickstart

test: setup $(DEV_STAMP)
	$(BIN)/pytest

check: $(DEV_STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The site goes to site/; a link, anchor or name that does not exist is an error.
docs: $(STAMP)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

# What needs transformers, diffusers, peft or Ray, the slow tests too. The adapters are tried on miniatures: nothing is
# downloaded but the packages. An environment of its own, as mypy reads whatever is installed beside it.
extras: $(EXTRAS_STAMP) gl
	$(EXTRAS)/bin/pytest -m 'not gpu' --timeout 300 -rs $(patsubst %,tests/test_%.py,openvla_oft smolvla opensora \
		videomae vlm_judge paper_scale views plan ray)

$(EXTRAS_STAMP): $(STAMP)
	$(BIN)/python -m venv $(EXTRAS)
	$(EXTRAS)/bin/pip install -q --disable-pip-version-check torch==2.13.0
	$(EXTRAS)/bin/pip install -q --disable-pip-version-check -c constraints.txt -e '.[sim,data,dev,hf,ray]'
	@touch $@

# PyTorch first and pinned: an unpinned one would pull gigabytes of CUDA on a laptop.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed (apt-get install python3 python3-venv)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[sim]'
	@touch $@

$(DEV_STAMP): $(STAMP)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[sim,data,dev]'
	@touch $@

gl: $(STAMP)
	@$(BIN)/python scripts/check_gl.py || sh scripts/install_gl.sh && $(BIN)/python scripts/check_gl.py
