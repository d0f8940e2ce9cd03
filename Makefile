# SPDX-License-Identifier: MIT
# make run     set up what is missing, then patch, build, boot, measure, print the table
# make check   set up what is missing, then every test
# ARGS='…'     options for harness run, or for pytest under check
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
	$(BIN)/mypy
	COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
		$(BIN)/pytest --numprocesses 4 --cov harness --cov-report= -m 'not guest and not deep' $(ARGS)
	@$(BIN)/python -m tests.covered
	$(MAKE) --no-print-directory --jobs 2 check-beds check-others

# What boots machines, and what compiles longest, runs beside what measures on beds, with
# directories of its own: tests look for what is left in the usual ones.
check-beds: $(VENV)/installed-dev
	$(BIN)/pytest -m 'guest and not others and not deep' $(ARGS)

check-others: $(VENV)/installed-dev
	@own=$$(mktemp -d) && echo "others: $$own/log, shown when they are through" && \
	if TMPDIR=$$own XDG_RUNTIME_DIR=$$own $(BIN)/pytest -m 'guest and others and not deep' $(ARGS) > $$own/log 2>&1; \
	then cat $$own/log; rm -rf $$own; else cat $$own/log; exit 1; fi

lint: system $(VENV)/installed-dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/mypy

# Each sees for itself whether there is anything to do.
system:
	@PYTHON='$(PYTHON)' sh .ci/setup.sh system $(FOR)

$(VENV)/installed: again | system
	@PYTHON='$(PYTHON)' sh .ci/setup.sh venv

$(VENV)/installed-dev: again | system
	@PYTHON='$(PYTHON)' sh .ci/setup.sh venv dev

again:

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
