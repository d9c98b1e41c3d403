#!/bin/sh
# Called with the root's folder when all packages are there, by somebody who may write all of it: makes
# a system of them. The public key that may log in is on standard input.
set -eu
root=$1

# write FILE: standard input into a file of the root.
write() {
    mkdir -p "$root/$(dirname "$1")"
    cat >"$root/$1"
}

mkdir -p "$root/root/.ssh"
write root/.ssh/authorized_keys
chmod 700 "$root/root/.ssh"
chmod 600 "$root/root/.ssh/authorized_keys"

echo roost | write etc/hostname
write etc/hosts <<'EOF'
127.0.0.1 localhost roost
::1 localhost ip6-localhost ip6-loopback
EOF

# One that is there spares the first start the setting of all units to their presets.
tr -d - </proc/sys/kernel/random/uuid | write etc/machine-id

# Any network card asks for an address. Nothing waits for the answer.
write etc/systemd/network/80-dhcp.network <<'EOF'
[Match]
Name=en* eth*

[Network]
DHCP=yes

[DHCPv4]
UseDomains=yes
EOF
units=$root/etc/systemd/system
wanted=$units/multi-user.target.wants
mkdir -p "$wanted" "$units/sockets.target.wants" "$units/sysinit.target.wants"
ln -sf /lib/systemd/system/systemd-networkd.service "$wanted/"
ln -sf /lib/systemd/system/systemd-networkd.socket "$units/sockets.target.wants/"
rm -f "$units/network-online.target.wants/systemd-networkd-wait-online.service"
if [ -e "$root/lib/systemd/system/systemd-resolved.service" ]; then
    ln -sf /lib/systemd/system/systemd-resolved.service "$units/sysinit.target.wants/"
    ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
fi

# `roost.autologin` on the kernel's command line spares the password at the console.
write etc/systemd/system/serial-getty@.service.d/roost.conf <<'EOF'
[Service]
ExecStart=
ExecStart=-/bin/sh -c 'grep -qw roost.autologin /proc/cmdline && set -- --autologin root; exec /sbin/agetty "$$@" --keep-baud 115200,57600,38400,9600 %I ${TERM}' getty
EOF

# An emulator on a busy machine is no reason to give up.
write etc/systemd/system.conf.d/roost.conf <<'EOF'
[Manager]
DefaultTimeoutStartSec=15min
DefaultDeviceTimeoutSec=15min
EOF

# Nobody has asked for upgrades and for reading all of the disk, behind the user's back.
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service; do
    ln -sf /dev/null "$units/$unit"
done
