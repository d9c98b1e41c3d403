#!/bin/sh
# Measures the guest benchmark. Arguments go to the `bench` program.
set -eu
cd "$(dirname "$0")/.."
. scripts/toolchain.sh
need_rust
exec "$CARGO" run --quiet --profile tool --package bench -- "$@"
