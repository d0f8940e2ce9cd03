#!/bin/sh
# SPDX-License-Identifier: MIT
# Run by mmdebstrap on the new guest's root, $1: who may log in, what starts.
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
umask 077
printf '%s\n' "$HOST_KEY" > "$root/etc/ssh/ssh_host_ed25519_key"
umask 022
cat > "$root/etc/ssh/sshd_config.d/guest.conf" <<END
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
PermitRootLogin no
UseDNS no
END

echo guest > "$root/etc/hostname"
echo "127.0.0.1 localhost guest" > "$root/etc/hosts"
echo "/dev/vda / ext4 rw,noatime 0 0" > "$root/etc/fstab"
cat > "$root/etc/systemd/network/management.network" <<END
[Match]
Driver=virtio_net
[Network]
Address=10.0.2.15/24
LinkLocalAddressing=no
IPv6AcceptRA=no
END
chroot "$root" systemctl enable systemd-networkd.service ssh.service
chroot "$root" systemctl mask \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-networkd-wait-online.service systemd-timesyncd.service systemd-resolved.service \
    getty@tty1.service serial-getty@ttyS0.service systemd-update-utmp.service systemd-logind.service \
    systemd-random-seed.service systemd-journal-flush.service systemd-tmpfiles-clean.timer \
    netperf.service netserver.service systemd-pcrmachine.service systemd-firstboot.service \
    modprobe@.service ldconfig.service systemd-binfmt.service systemd-update-done.service >/dev/null
chroot "$root" systemctl set-default multi-user.target >/dev/null
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\n' > "$root/etc/systemd/journald.conf.d/guest.conf"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
