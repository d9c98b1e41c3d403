#!/bin/sh
# Kills the whole machine in the middle of writes, and looks for what guests were told is durable
# (tests/tests/powercut.rs). A fifth as many guests are Linux with a file system.
# Usage: powercut.sh [KILLS]; 200 unless said otherwise.
set -eu
cd "$(dirname "$0")/.."
. scripts/toolchain.sh
need_rust
scripts/build.sh --checks
scripts/fetch-kernel.sh >/dev/null
ROOST_KILLS=${1:-200} "$CARGO" test --quiet --package roost-tests --test powercut -- --nocapture
