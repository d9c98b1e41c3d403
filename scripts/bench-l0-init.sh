#!/bin/sh
# The first program of a machine that has one guest of KVM: loads KVM, runs the guest, powers off. The
# guest's own ramdisk may have this as its first program too.
. /kvm-init.sh
kvm_init
# shellcheck disable=SC2046 # a list of words
l0-direct $(cat /arguments) --kernel /kernel --initrd /initrd --append "$(cat /append)" \
    </dev/ttyS0 >/dev/ttyS0 2>&1 || echo "l0-direct failed" >/dev/ttyS0
poweroff -f
