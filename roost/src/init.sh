#!/bin/sh
# First program of a guest made by `roost initrd --busybox`: mounts, then busybox's init with a
# shell on the console.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin TERM=linux

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
hostname roost

# A session of its own on the console (hvc0 under Roost) gives the shell job control.
cat >/etc/session <<'END'
#!/bin/sh
export HOME=/root PS1='\h:\w\$ '
cd /root || cd /
setsid cttyhack sh
sync
poweroff -f
END
chmod 755 /etc/session

# It starts the session, buries orphans, and does what poweroff, halt and reboot ask for. A script
# cannot: its background jobs and all their children ignore Ctrl-C.
echo '::once:/etc/session' >/etc/inittab
exec init
