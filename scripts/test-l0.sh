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
# The broken L0s, in a place of their own; scripts/test.sh builds the same.
guest_program l0-ref l0-ref --features flaws --target-dir "${CARGO_TARGET_DIR:-target}/flaws"
guest_program l0-ref l0-direct --features direct
guest_program linux-guest guest-checks
guest_program bench guest-bench
scripts/fetch-kernel.sh >/dev/null
"$CARGO" test --quiet --package l0-ref
"$CARGO" test --quiet --no-fail-fast --package roost-tests --test l0 --test l0_conformance \
    --test l0_costs
