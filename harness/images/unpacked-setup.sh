#!/bin/sh
# SPDX-License-Identifier: MIT
# Run by mmdebstrap on the root $1, whose packages are unpacked and not configured: adds what
# their scripts would have made, as far as a user-mode kernel needs it, and makes the disk $DISK.
# Every file of it belongs to root.
set -eu
root=$1

for part in passwd group; do
    cp "$root/usr/share/base-passwd/$part.master" "$root/etc/$part"
done
mkdir -p "$root/mnt" "$root/run/lock" "$root/var/log" "$root/var/tmp"
echo guest > "$root/etc/hostname"
echo "127.0.0.1 localhost guest" > "$root/etc/hosts"
for part in man doc locale info; do rm -rf "$root/usr/share/$part"; done
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*

used_kib=$(du -sk "$root" | cut -f1)
files=$(find "$root" | wc -l)
genext2fs --block-size 4096 --size-in-blocks $((used_kib * 5 / 16 + 65536)) \
    --number-of-inodes $((files * 2 + 4096)) --squash-uids --root "$root" "$DISK"
