#!/bin/sh
# The first program of L0's machine: loads KVM, runs l0-ref with the suite in the place of L1, and
# tells its status in the log.
. /kvm-init.sh
mount_all
# KVM takes the TSC's rate when it is loaded; the kernel corrects it a second after its start. With
# another rate than the machine's, KVM gives new vCPUs a TSC that stands still.
for _ in 1 2 3 4 5 6 7 8; do
    dmesg | grep -q "Refined TSC" && break
    sleep 0.5
done
load_kvm
# shellcheck disable=SC2046 # a list of words
l0-ref --l1 /l1 $(cat /arguments) --append "$(cat /append)" </dev/null >/dev/ttyS0 2>&1
echo "@l0-ref $?" >/dev/ttyS1
poweroff -f
