# Customizes the default image: mmdebstrap runs it with the root as $1.
set -eu
root=$1

chroot "$root" useradd --create-home --uid 1000 --shell /bin/bash --groups sudo ubuntu
printf 'ubuntu ALL=(ALL) NOPASSWD:ALL\n' >"$root/etc/sudoers.d/ubuntu"
chmod 0440 "$root/etc/sudoers.d/ubuntu"

# Nothing that two VMs would share: host keys are made on first start, the machine id too.
rm -f "$root"/etc/ssh/ssh_host_*
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
mkdir -p "$root/etc/systemd/system/ssh.service.d" "$root/etc/ssh/sshd_config.d"
cat >"$root/etc/systemd/system/ssh.service.d/enisle.conf" <<'UNIT'
[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'test -s /etc/ssh/ssh_host_ed25519_key || ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key'
ExecStartPre=/usr/sbin/sshd -t
UNIT
cat >"$root/etc/ssh/sshd_config.d/enisle.conf" <<'CONF'
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
UseDNS no
CONF

# The console belongs to whoever runs the VM: a root shell without a password. There is no udev
# that could announce ttyS0, so the getty of /dev/console serves it.
mkdir -p "$root/etc/systemd/system/console-getty.service.d"
cat >"$root/etc/systemd/system/console-getty.service.d/enisle.conf" <<'UNIT'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud console 115200,38400,9600 $TERM
UNIT
chroot "$root" systemctl --quiet enable ssh.service
# Not by `enable`, which hangs it on getty.target: that one is masked below, with all it would start.
ln -s /lib/systemd/system/console-getty.service "$root/etc/systemd/system/multi-user.target.wants/"

# What a microVM has no use for, and what only delays its start.
for unit in serial-getty@ttyS0.service getty@tty1.service getty.target apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-pstore.service \
    systemd-timesyncd.service systemd-network-generator.service modprobe@.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
: >"$root/etc/fstab"
rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
