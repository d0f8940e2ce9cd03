#!/bin/sh
# SPDX-License-Identifier: MIT
# Run by mmdebstrap on the new guest's root, $1: who may log in, and what starts.
# There is no service manager: under emulation one takes most of a boot's time.
set -eu
root=$1

chroot "$root" useradd --create-home --shell /bin/bash "$GUEST_USER"
install -m 0440 /dev/stdin "$root/etc/sudoers.d/$GUEST_USER" <<END
$GUEST_USER ALL=(ALL) NOPASSWD: ALL
END
home=$root/home/$GUEST_USER
install -d -m 0700 "$home/.ssh"
install -m 0600 /dev/stdin "$home/.ssh/authorized_keys" <<END
$AUTHORIZED_KEY
END
chroot "$root" chown -R "$GUEST_USER:" "/home/$GUEST_USER/.ssh"

rm -f "$root"/etc/ssh/ssh_host_*
install -m 0600 /dev/stdin "$root/etc/ssh/ssh_host_ed25519_key" <<END
$HOST_KEY
END
cat > "$root/etc/ssh/sshd_config.d/guest.conf" <<END
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
PermitRootLogin no
UseDNS no
END

echo guest > "$root/etc/hostname"
echo "127.0.0.1 localhost guest" > "$root/etc/hosts"
install -m 0755 /dev/stdin "$root/sbin/guest-init" <<'END'
#!/bin/sh
# The guest's init: file systems, the management interface, sshd.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for at in /dev/shm /run /tmp; do mount -t tmpfs tmpfs $at; done
chmod 1777 /tmp /dev/shm
headers=/usr/lib/modules/$(uname -r)
mkdir -p /run/sshd "$headers"
mount -t squashfs -o ro /dev/vdb "$headers"
hostname guest
ip link set lo up
for device in /sys/class/net/*; do
    case $(readlink "$device/device/driver") in
    */virtio_net)
        ip address add 10.0.2.15/24 dev "${device##*/}"
        ip link set "${device##*/}" up ;;
    esac
done
/usr/sbin/sshd -D -e &
while :; do wait; sleep 1; done
END
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
