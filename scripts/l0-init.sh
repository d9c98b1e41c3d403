#!/bin/sh
# The first program of L0's machine: loads KVM, runs /command, and tells its status in the log.
. /kvm-init.sh
kvm_init
# shellcheck disable=SC2046 # a list of words
setsid -c $(cat /command) </dev/ttyS0 >/dev/ttyS0 2>&1
echo "@l0-ref $?" >/dev/ttyS1
poweroff -f
