# SPDX-License-Identifier: Apache-2.0
# make demo · make test · make lint · make bench

PYTHON ?= python3
VENV ?= .venv
# Passed on: make demo ARGS='--seed 3', make test ARGS='test/unit -k prompts'
ARGS ?=

RUN := $(VENV)/bin/python
SETUP := $(PYTHON) scripts/setup_env.py --venv $(VENV) --extras

# What is installed in $(VENV) must be found, not a ROS 2 that happens to be sourced.
ifdef AMENT_PREFIX_PATH
unexport LD_LIBRARY_PATH
endif
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH PYTHONHOME PYTHONPATH RMW_IMPLEMENTATION ROS_DISTRO
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE
# ROS traffic stays on this machine and apart from other runs on it.
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST
export ROS_DOMAIN_ID ?= $(shell echo $$((20 + $$PPID % 80)))

.DEFAULT_GOAL := help
.PHONY: help python demo test lint bench clean

help: ## this page
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

python:
	@command -v $(PYTHON) > /dev/null || { \
	    echo 'There is no $(PYTHON) here. Install it with:'; echo; \
	    echo '    sudo apt install python3 python3-venv python3-dev g++'; echo; \
	    echo 'and run the same command again, or name another: make demo PYTHON=python3.12'; \
	    exit 2; } >&2

demo: python ## fly the simulated drone; writes demo_output/index.html
	@$(SETUP) cpu,opencv
	@$(RUN) -m blabberseg_ros.demo.run $(ARGS)

test: python ## all tests that need no GPU
	@$(SETUP) cpu,opencv,torch,test
	@$(RUN) -m pytest -m 'not gpu' $(ARGS)

lint: python ## ruff and mypy
	@$(SETUP) cpu,opencv,lint
	@$(RUN) -m ruff check
	@$(RUN) -m mypy

bench: python ## speed of this machine, as CSV
	@$(SETUP) cpu,opencv,torch,test
	@$(RUN) -m blabberseg_ros.cli.main bench $(ARGS)

clean: ## remove the environment and all that was built or written
	rm -rf $(VENV) build install log dist *.egg-info demo_output \
	    .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
