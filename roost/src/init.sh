#!/bin/sh
# First program of a guest made by `roost initrd --busybox`: mounts, a shell, power off.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=linux

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
hostname roost
cd /root || cd /

# What poweroff, halt and reboot send to process 1.
trap 'sync; poweroff -f' USR1 USR2
trap 'sync; reboot -f' TERM

# A session of its own on the console (hvc0 under Roost) gives the shell job control.
export PS1='\h:\w\$ '
setsid cttyhack sh </dev/console >/dev/console 2>&1 &
wait

# The kernel panics if its first program ends.
sync
poweroff -f
