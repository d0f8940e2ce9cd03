#!/bin/sh
# SPDX-License-Identifier: MIT
# Run by mmdebstrap on the new machine's root, $1: a Debian as an operator has it,
# but for units that nothing here needs: under emulation each costs seconds.
set -eu
root=$1

chroot "$root" useradd --create-home --shell /bin/bash "$MACHINE_USER"
home=$root/home/$MACHINE_USER
install -d -m 0700 "$home/.ssh"
install -m 0600 /dev/stdin "$home/.ssh/authorized_keys" <<END
$AUTHORIZED_KEY
END
chroot "$root" chown -R "$MACHINE_USER:" "/home/$MACHINE_USER/.ssh"
rm -f "$root"/etc/ssh/ssh_host_*
cat > "$root/etc/ssh/sshd_config.d/machine.conf" <<END
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
PermitRootLogin no
UseDNS no
END

cat > "$root/etc/fstab" <<END
UUID=$ROOT_UUID / ext4 errors=remount-ro 0 1
END
# By a unit that waits for the interface's last name: systemd-networkd, started while
# udev renames it, may take it for one that is not its own, and never look again.
cat > "$root/etc/systemd/system/management.service" <<END
[Unit]
Description=Address of the management network
After=sys-subsystem-net-devices-enp0s3.device
BindsTo=sys-subsystem-net-devices-enp0s3.device
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip address add 10.0.2.15/24 dev enp0s3
ExecStart=ip link set enp0s3 up
ExecStart=ip route add default via 10.0.2.2
[Install]
WantedBy=sys-subsystem-net-devices-enp0s3.device
END
chroot "$root" systemctl enable management.service ssh.service
chroot "$root" systemctl set-default multi-user.target
chroot "$root" systemctl mask --quiet \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer systemd-tmpfiles-clean.timer \
    systemd-udev-settle.service systemd-firstboot.service systemd-hwdb-update.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-pstore.service \
    systemd-journal-catalog-update.service systemd-update-done.service ldconfig.service \
    systemd-sysusers.service systemd-sysext.socket proc-sys-fs-binfmt_misc.automount \
    modprobe@drm.service modprobe@fuse.service modprobe@configfs.service \
    sys-fs-fuse-connections.mount sys-kernel-config.mount \
    getty-static.service getty@tty1.service serial-getty@ttyS0.service netperf.service
install -d "$root/etc/systemd/system-generators" "$root/etc/udev/rules.d"
ln -s /dev/null "$root/etc/systemd/system-generators/systemd-ssh-generator"
# Of what the buses name, drivers for the devices that are used, and no more.
cat > "$root/etc/udev/rules.d/80-drivers.rules" <<'END'
ACTION!="remove", SUBSYSTEM=="pci|virtio", ENV{MODALIAS}=="?*", RUN{builtin}+="kmod load"
END

# A tenth of what MODULES=most unpacks at every boot, and no udev to find the one disk.
cat > "$root/etc/initramfs-tools/conf.d/machine" <<END
MODULES=list
RESUME=none
END
printf '%s\n' virtio_pci virtio_blk ext4 >> "$root/etc/initramfs-tools/modules"
scripts=$root/etc/initramfs-tools/scripts
install -d "$scripts/init-top" "$scripts/init-bottom"
install -m 0755 /dev/stdin "$root/etc/initramfs-tools/hooks/without-udev" <<'END'
#!/bin/sh
test "$1" = prereqs || rm -rf "${DESTDIR:?}/usr/lib/udev" "$DESTDIR/usr/bin/udevadm" \
    "$DESTDIR"/usr/lib/*/systemd
END
install -m 0755 /dev/stdin "$scripts/init-top/udev" <<'END'
#!/bin/sh
END
install -m 0755 /dev/stdin "$scripts/init-bottom/udev" <<'END'
#!/bin/sh
test "$1" = prereqs || mount -n -o move /dev "${rootmnt:?}/dev"
END
chroot "$root" update-initramfs -u

cat > "$root/etc/default/grub" <<'END'
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="console=ttyS0,115200"
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
END
# Runs once, as init, where the disk is the machine's own.
install -m 0755 /dev/stdin "$root/sbin/install-boot-loader" <<'END'
#!/bin/sh
mount -o remount,rw /
mount -t tmpfs tmpfs /run
mkdir -p /dev/disk/by-uuid  # as udev does
ln -s /dev/vda1 "/dev/disk/by-uuid/$(blkid -s UUID -o value /dev/vda1)"
for file in /boot/vmlinuz-* /boot/initrd.img-*; do  # in extents: GRUB reads them five times faster
    cp -p "$file" /boot/copy && mv /boot/copy "$file"
done
grub-install /dev/vda && update-grub && rm /sbin/install-boot-loader && echo boot loader installed
sync
echo u > /proc/sysrq-trigger
sleep 2
echo o > /proc/sysrq-trigger
sleep 60
END
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
