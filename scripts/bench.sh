#!/bin/sh
# Measures the guest benchmark, natively and in a guest, and writes docs/benchmarks.md. Arguments
# go to the `bench` program.
set -eu
cd "$(dirname "$0")/.."
. scripts/toolchain.sh
need_rust
kernel=$(scripts/fetch-kernel.sh)
msr=$(find "$(dirname "$kernel")/root" -name 'msr.ko' | head -n 1)
guest_program bench guest-bench
exec "$CARGO" run --quiet --profile tool --package bench -- \
    --kernel "$kernel" ${msr:+--msr-module "$msr"} "$@"
