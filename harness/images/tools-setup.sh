#!/bin/sh
# SPDX-License-Identifier: MIT
# Run by mmdebstrap on the new tools root, $1: a QEMU that has vfio-user-pci.
# It is in the backports of the mirror mmdebstrap was given.
set -eu
root=$1

sed -n "s/^\(deb .*\) $SUITE main.*/\1 $SUITE-backports main/p" "$root/etc/apt/sources.list" |
    head -n 1 > "$root/etc/apt/sources.list.d/backports.list"
chroot "$root" apt-get update
chroot "$root" apt-get install --yes --no-install-recommends -t "$SUITE-backports" qemu-system-x86
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
