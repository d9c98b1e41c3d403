#!/bin/sh
# The tests of the reference L0: its own, and the chain QEMU -> kernel with KVM -> l0-ref -> L1 ->
# guest. Needs what setup.sh installs.
set -eu
cd "$(dirname "$0")/.."
. scripts/toolchain.sh
need_rust
scripts/build.sh
guest_program l0-ref l0-ref
guest_program l0-ref l0-check
guest_program linux-guest guest-checks
scripts/fetch-kernel.sh >/dev/null
"$CARGO" test --quiet --package l0-ref
"$CARGO" test --quiet --package roost-tests --test l0
