#!/bin/sh
# SPDX-License-Identifier: MIT
# The first process of a user-mode kernel, from what the host shares in /mnt: file systems,
# the agent on the first serial line, and an orderly end once that line is closed.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for at in /dev/shm /run /tmp; do mount -t tmpfs tmpfs $at; done
chmod 1777 /tmp /dev/shm
hostname guest
ip link set lo up
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
echo on > /proc/sys/kernel/printk_devkmsg
# Kept open, or the line would be another again once it is closed.
exec 3<> /dev/ttyS0
stty raw -echo <&3
python3 -I /mnt/agent.pyz <&3 >&3 2> /dev/kmsg
exec 3>&-
# With its driver bound, the NIC takes ten seconds to let the kernel go.
for device in /sys/bus/pci/drivers/sfc/*:*; do
    [ -e "$device" ] && echo "${device##*/}" > /sys/bus/pci/drivers/sfc/unbind
done
echo o > /proc/sysrq-trigger
sleep 60
