#!/bin/sh
# SPDX-License-Identifier: MIT
# The first process of a user-mode kernel, from the host's directory in /mnt: mounts file
# systems, runs the agent on the first serial line, and powers off when that line is closed.
# A program beside it has the second line.
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
if [ -e /mnt/program.py ]; then
    exec 4<> /dev/ttyS1
    stty raw -echo <&4
    python3 -I /mnt/program.py <&4 >&4 2> /dev/kmsg &
    exec 4>&-
fi
# Keep the line open: the last close would reset its settings.
exec 3<> /dev/ttyS0
stty raw -echo <&3
python3 -I /mnt/agent.pyz <&3 >&3 2> /dev/kmsg
exec 3>&-
# While sfc is bound, it waits ten seconds for the NIC at power-off.
for device in /sys/bus/pci/drivers/sfc/*:*; do
    [ -e "$device" ] && echo "${device##*/}" > /sys/bus/pci/drivers/sfc/unbind
done
echo o > /proc/sysrq-trigger
sleep 60
