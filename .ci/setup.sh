#!/bin/sh
# SPDX-License-Identifier: MIT
# What the Makefile sets up, where it is missing.
#   sh .ci/setup.sh system [check]    packages of this system; with check those of the tests, too
#   sh .ci/setup.sh venv [dev]        the harness in .venv; with dev what the tests take, too
# Nothing else is installed.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # su without - leaves it out, and dpkg wants it

kernel_build="gcc make flex bison bc libelf-dev libssl-dev dwarves xz-utils kmod"
kernel_source="linux-source-6.12"
guest_image="mmdebstrap uidmap genext2fs squashfs-tools debian-archive-keyring fdisk e2fsprogs"
guest_run="openssh-client iproute2 procps util-linux"
python_build="git python3-venv"
# The tests look at the HTML report, count what a CPU does, try BMCs and what speaks to
# them, a boot loader's tools, compilers of a lab, a firewall. They skip what is not there.
tests="chromium linux-perf ipmitool openipmi openssl grub-common ccache distcc nftables"

say() { printf '%s\n' "$*"; }
stop() {
    say "$@" >&2
    exit 3
}

python_is_new_enough() {
    for python in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    done
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        found=$("${PYTHON:-python3}" --version 2>&1) || found="no ${PYTHON:-python3}"
        stop "Python 3.11 or newer is needed, and this system has $found:" \
            "install a newer one and say make PYTHON=python3.12 …"
    fi
    [ "$python" = "${PYTHON:-python3}" ] || stop \
        "${PYTHON:-python3} is $("${PYTHON:-python3}" --version 2>&1), and 3.11 or newer is" \
        "needed: say make PYTHON=$python …"
}

without_dpkg() {
    lacking=
    for program in gcc make flex bison bc xz pahole depmod mksquashfs mmdebstrap newuidmap \
        genext2fs ssh ip sysctl unshare nsenter git; do
        command -v "$program" >/dev/null || lacking="$lacking $program"
    done
    for header in gelf.h openssl/ssl.h; do
        echo "#include <$header>" | gcc -E -x c - >/dev/null 2>&1 || lacking="$lacking $header"
    done
    if [ -n "$lacking" ]; then
        say "This system has no dpkg. Install by its own package manager what has:$lacking"
        say "On Fedora: dnf install gcc make flex bison bc elfutils-libelf-devel openssl-devel dwarves" \
            "xz kmod squashfs-tools mmdebstrap shadow-utils genext2fs debian-keyring openssh-clients" \
            "iproute procps-ng util-linux git"
        say "The kernel's source: name a git tree by ARGS='--tree DIR', or a tarball in hosts.yaml" \
            "(kernel: {source: {tarball: FILE}})."
        exit 3
    fi
}

installed() {
    dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed
}

purpose() {
    case " $kernel_build " in *" $1 "*) say "to build kernels" && return ;; esac
    case " $guest_image " in *" $1 "*) say "to make guest images" && return ;; esac
    case " $guest_run " in *" $1 "*) say "to run guests and reach them" && return ;; esac
    say "to install the harness"
}

# Says what a package that no source has means, and drops it where one can do without.
without() {
    case $1 in
    linux-source-*)
        say "$1 is in none of this system's package sources: name a git tree by" \
            "ARGS='--tree DIR', or a tarball in hosts.yaml (kernel: {source: {tarball: FILE}})." \
            "harness run says how any user gets Debian's as a tarball." ;;
    linux-perf)
        say "linux-perf is in none of this system's package sources (Ubuntu has it as" \
            "linux-tools-generic): tests that need it skip." ;;
    chromium)
        say "chromium is in none of this system's package sources (Ubuntu has it as a snap):" \
            "tests that need it skip." ;;
    *)
        case " $tests " in
        *" $1 "*) say "$1 is in none of this system's package sources: tests that need it skip." ;;
        *) hopeless="$hopeless $1" ;;
        esac ;;
    esac
}

# By its whole name: apt's commands take linux-source-6.1 for a pattern, too.
offered() {
    apt-cache show --no-all-versions "$1" 2>/dev/null | grep -qx "Package: $1"
}

# Is all that is missing such as one can do without, and in no list that apt has got? Then
# there is nothing to ask apt for, or an administrator, each time anew.
beyond_apt() {
    ls "${APT_LISTS:-/var/lib/apt/lists}"/*Packages* >/dev/null 2>&1 || return 1
    for package in $missing; do
        case " $kernel_source $tests " in *" $package "*) ;; *) return 1 ;; esac
        ! offered "$package" || return 1
    done
}

# Lists that somebody else is just writing are waited for.
updated() {
    tries=0
    while ! said=$(as_root apt-get update -qq 2>&1); do
        case $said in
        *"get lock"* | *"lock directory"*) ;;
        *) break ;;
        esac
        tries=$((tries + 1))
        [ $tries -lt "${LOCK_TRIES:-60}" ] || break
        [ $tries -gt 1 ] || say "Another program is at apt's lists; waiting for it …"
        sleep "${LOCK_SLEEP_S:-5}"
    done
    case $said in
    *[![:space:]]*) printf '%s\n' "$said" "apt-get update said this; going on with the lists there are." >&2 ;;
    esac
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

may_be_root() {
    [ "$(id -u)" != 0 ] || return 0
    ask="Ask your administrator to run: apt-get install --no-install-recommends $missing"
    command -v sudo >/dev/null || stop "There is no sudo. $ask"
    sudo -n true 2>/dev/null && return 0
    [ -t 0 ] || stop "sudo wants a password, and there is no terminal to ask for it. $ask"
    say "sudo asks for your password, to install them."
    sudo -v || stop "sudo does not let you. $ask"
}

system() {
    if ! command -v dpkg-query >/dev/null; then
        without_dpkg
        return 0
    fi
    wanted="$python_build $kernel_build $kernel_source $guest_image $guest_run"
    [ "$1" != check ] || wanted="$wanted $tests"
    missing=
    for package in $wanted; do
        installed "$package" || missing="$missing $package"
    done
    missing=${missing# }
    [ -n "$missing" ] || return 0

    if beyond_apt; then
        for package in $missing; do without "$package"; done
        return 0
    fi
    say "System packages to install: $missing"
    say "  to build kernels: $kernel_build"
    say "  the kernel itself: $kernel_source"
    say "  to make guest images: $guest_image"
    say "  to run guests and reach them: $guest_run"
    say "  to install the harness: $python_build"
    [ "$1" != check ] || say "  to test with and against (make check): $tests"
    command -v apt-get >/dev/null || stop "There is no apt-get: install them by this system's own means."
    may_be_root
    updated
    there=
    hopeless=
    for package in $missing; do
        if offered "$package"; then
            there="$there $package"
        else
            without "$package"
        fi
    done
    for package in $hopeless; do
        say "$package, needed $(purpose "$package"), is in none of this system's package sources." >&2
    done
    if [ -n "$hopeless" ]; then
        stop "Add the source that has$hopeless (in Ubuntu: add-apt-repository universe)," \
            "see that apt-get update can read it, or install it otherwise."
    fi
    [ -n "$there" ] || return 0
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=600 $there || stop "apt-get did not install them; its words are above."
}

# Made anew where it was left half made, or its Python has gone; installed again where
# pyproject.toml or what the install compiles is another now, or this directory was moved.
venv() {
    stamp=.venv/installed${1:+-$1}
    made_from="$(pwd) $(cat pyproject.toml .ci/compile_datapath.py harness/nic/datapath/*.[ch] 2>/dev/null | cksum)"
    if .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        [ "$(cat "$stamp" 2>/dev/null)" != "$made_from" ] || return 0
    else
        rm -rf .venv
        "${PYTHON:-python3}" -m venv .venv || stop "No virtual environment can be made; what" \
            "lacks is said above (Debian has it as python3-venv, for its own python3 alone)."
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}" ||
        stop "pip did not install what the harness takes; its words are above."
    printf %s "$made_from" >"$stamp"
}

cd "$(dirname "$0")/.."
python_is_new_enough
case ${1:-} in
system) system "${2:-}" ;;
venv) venv "${2:-}" ;;
*) stop "sh .ci/setup.sh system [check] | venv [dev]" ;;
esac
