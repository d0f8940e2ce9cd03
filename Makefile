# SPDX-License-Identifier: MIT
# make run     install what is missing, then patch, build, boot, measure, print the table
# make check   install what is missing, then run every test
# ARGS='…'     options for harness run, or with check for pytest
.DEFAULT_GOAL := help
.PHONY: help run check check-beds check-others system lint clean again

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

help:
	@sed -n 's/^# make /make /p' Makefile

run: system $(VENV)/installed
	$(BIN)/harness run $(ARGS)

check: FOR := check
check: system $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --cache-dir "$${RECEIVE_BATCHING_CACHE:-$$HOME/.cache/receive-batching}/mypy"
	COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
		$(BIN)/pytest --numprocesses 4 --cov harness --cov-report= -m 'not guest and not deep' $(ARGS)
	@$(BIN)/python -m tests.covered
	$(MAKE) --no-print-directory --jobs 2 check-beds check-others

# The tests that boot machines or compile longest run beside those that measure on beds. They
# get their own directories, because tests check that the usual ones are left clean.
check-beds: $(VENV)/installed-dev
	$(BIN)/pytest -m 'guest and not others and not deep' $(ARGS)

check-others: $(VENV)/installed-dev
	@own=$$(mktemp -d) && echo "others: log in $$own/log, printed when they have ended" && \
	if TMPDIR=$$own XDG_RUNTIME_DIR=$$own $(BIN)/pytest -m 'guest and others and not deep' $(ARGS) > $$own/log 2>&1; \
	then cat $$own/log; rm -rf $$own; else cat $$own/log; exit 1; fi

lint: system $(VENV)/installed-dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/mypy

# Each checks for itself whether there is anything to do.
system:
	@PYTHON='$(PYTHON)' sh .ci/setup.sh system $(FOR)

$(VENV)/installed: again | system
	@PYTHON='$(PYTHON)' sh .ci/setup.sh venv

$(VENV)/installed-dev: again | system
	@PYTHON='$(PYTHON)' sh .ci/setup.sh venv dev

again:

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
