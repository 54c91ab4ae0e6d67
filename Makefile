# make help: what there is
PYTHON ?= python3
BIN := .venv/bin
# Tests of one file stay in order, in one process; more of these than cores helps little.
JOBS ?= 2
HOMELAB := $(BIN)/homelab -i examples/this-machine.yml
.PHONY: help install quickstart quickstart-down test test-clients test-slow lint bench lab-up lab-down

help:  ## What there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 26

.venv/.installed: requirements/homelab.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements/build.lock -r requirements/homelab.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv/.developing: .venv/.installed requirements/dev.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements/dev.lock
	@touch $@

install: .venv/.installed  ## The command in .venv/bin/homelab

quickstart: install  ## This machine as a household: discover, plan, deploy, a chat, status
	$(BIN)/python examples/fetch-smollm2
	$(HOMELAB) discover
	$(HOMELAB) plan
	$(HOMELAB) deploy --yes
	$(HOMELAB) ask smollm2 "Why is the sky blue?" --max-tokens 48
	$(HOMELAB) status
	$(HOMELAB) connect
	@echo "Or all of it by: make quickstart-down"

quickstart-down: install  ## Take it down again; downloads stay cached
	$(HOMELAB) remove --yes

test: .venv/.developing  ## All tests that can run here
	$(BIN)/python -m pytest -m "not slow and not clients" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST)

test-clients: .venv/.developing  ## Claude Code, opencode, Codex … from npm, on scripted engines
	$(BIN)/python -m pytest -m "clients and not slow" $(PYTEST)

test-slow: .venv/.developing  ## Real vLLM on the CPU too: minutes
	$(BIN)/python -m pytest -m slow $(PYTEST)

lint: .venv/.developing  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.developing  ## Speed, as ratios against peers in the same run
	$(BIN)/python bench/speed.py

lab-up: .venv/.developing  ## A household of real machines on this box, to try things by hand (root, Docker)
	$(BIN)/python -m tests.lab up

lab-down: .venv/.developing  ## Take it away again
	$(BIN)/python -m tests.lab down
