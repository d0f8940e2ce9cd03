# SPDX-License-Identifier: MIT
# make run     set up what is missing, then patch, build, boot, measure, print the table
# make check   set up what is missing, then every test
# ARGS='…'     options for harness run, or for pytest under check
.DEFAULT_GOAL := help
.PHONY: help run check check-beds check-others system lint clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What each system package is for; nothing else is installed outside $(VENV).
KERNEL_BUILD := gcc make flex bison bc libelf-dev libssl-dev dwarves xz-utils kmod
KERNEL_SOURCE := linux-source-6.12
GUEST_IMAGE := mmdebstrap uidmap genext2fs squashfs-tools debian-archive-keyring fdisk e2fsprogs
GUEST_RUN := bubblewrap openssh-client iproute2 procps util-linux
PYTHON_BUILD := git python3-venv
# In the tests: looks at the HTML report, counts what a CPU does; so named in Debian alone.
OF_DEBIAN := $(shell . /etc/os-release && test "$$ID" = debian && echo chromium linux-perf)
# In the tests: BMCs and what speaks to them, a boot loader's tools, compilers of a lab, a firewall.
PEERS := ipmitool openipmi openssl grub-common ccache distcc nftables
PACKAGES := $(PYTHON_BUILD) $(KERNEL_BUILD) $(KERNEL_SOURCE) $(GUEST_IMAGE) $(GUEST_RUN)

help:
	@sed -n 's/^# make /make /p' Makefile

run: system $(VENV)/installed
	$(BIN)/harness run $(ARGS)

check: PACKAGES += $(OF_DEBIAN) $(PEERS)
check: system $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 4 -m 'not guest and not deep' $(ARGS)
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

$(VENV)/installed: EXTRAS :=
$(VENV)/installed-dev: EXTRAS := [dev]
$(VENV)/installed $(VENV)/installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.$(EXTRAS)'
	@touch $@

system:
	@missing=$$(for package in $(PACKAGES); do \
	    dpkg-query --show --showformat='$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || echo $$package; \
	done); \
	test -z "$$missing" && exit 0; \
	echo "System packages to install:" $$missing; \
	echo "  to build kernels: $(KERNEL_BUILD)"; \
	echo "  the kernel itself: $(KERNEL_SOURCE)"; \
	echo "  to make guest images: $(GUEST_IMAGE)"; \
	echo "  to run guests and reach them: $(GUEST_RUN)"; \
	echo "  to test with and against (make check): $(OF_DEBIAN) $(PEERS)"; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif command -v sudo >/dev/null; then sudo=sudo; else \
	    echo "Ask your administrator to run: apt-get install --no-install-recommends" $$missing; exit 3; fi; \
	$$sudo apt-get update -qq; \
	if ! apt-cache show $(KERNEL_SOURCE) >/dev/null 2>&1; then \
	    echo "$(KERNEL_SOURCE) is in none of this system's package sources: name a 6.12 git tree by ARGS='--tree DIR'"; \
	    missing=$$(echo $$missing | sed 's/$(KERNEL_SOURCE)//'); fi; \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends $$missing

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
