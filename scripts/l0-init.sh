#!/bin/sh
# The first program of L0's machine: loads KVM, runs l0-ref, and ends the machine with its status.
mount -t devtmpfs dev /dev
mount -t proc proc /proc
status=4
for module in /modules/*; do
    insmod "$module" || echo "l0-init: cannot load $module"
done
# Raw from the start, or what is typed early would be echoed.
stty -F /dev/ttyS0 raw -echo opost onlcr
# shellcheck disable=SC2046 # a list of words
setsid -c l0-ref --l1 /l1 --module /module --log /dev/ttyS1 $(cat /arguments) \
    </dev/ttyS0 >/dev/ttyS0 2>&1
status=$?
# isa-debug-exit: QEMU ends with twice the value, plus one.
# shellcheck disable=SC2059 # the octal number is the format
printf "\\$(printf %o $status)" | dd of=/dev/port bs=1 seek=$((0xf4)) 2>/dev/null
poweroff -f
