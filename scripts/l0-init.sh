#!/bin/sh
# The first program of L0's machine: loads KVM, runs /command, and tells its status in the log.
. /kvm-init.sh
kvm_init
# The kernel makes no huge page of what a process does not use: l0-ref's memory is compared before and after.
echo 0 >/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none
# shellcheck disable=SC2046 # a list of words
setsid -c $(cat /command) </dev/ttyS0 >/dev/ttyS0 2>&1
echo "@l0-ref $?" >/dev/ttyS1
poweroff -f
