#!/bin/sh
# All checks: format, lints, host tests, whole-system tests. Needs what setup.sh installs.
set -eu
cd "$(dirname "$0")/.."
. scripts/toolchain.sh
need_rust

step() {
    printf '\n== %s\n' "$1"
}

# with OPTION: the option once for each package that holds an image.
with() {
    for image in $bare_images; do
        echo "$1=${image%:*}"
    done
}

step "format"
"$CARGO" fmt --all --check

step "images and tool, programs of the host tests"
# The end of each image's build keeps one CPU busy; another has the tests.
"$CARGO" test --quiet --workspace --exclude roost-tests --no-run &
host_tests=$!
scripts/build.sh --checks || { kill "$host_tests" || true; exit 1; }
wait "$host_tests"

step "lints"
# An image has no std to build its program with on the host, but its tests are host programs.
# shellcheck disable=SC2046 # lists of words
{
    "$CARGO" clippy --quiet --workspace $(with --exclude) --all-targets -- -D warnings
    "$CARGO" clippy --quiet $(with --package) --tests -- -D warnings
    "$CARGO" clippy --quiet --package shadow-mmu --package mmu-stress --package roost \
        --features mutants --all-targets -- -D warnings
    "$CARGO" clippy --quiet --package l0-ref --features flaws,direct --all-targets -- -D warnings
}
for image in $bare_images; do
    bare clippy --quiet --release --package "${image%:*}" --bin "${image#*:}" -- -D warnings
done
for features in tlb-model,dirty-check flaws bases-by-msr; do
    bare clippy --quiet --release --package l1-host --bin l1 --features "$features" -- -D warnings
done

step "host tests"
"$CARGO" test --quiet --workspace --exclude roost-tests

step "models of the shadow MMU"
# A cache of its own: the flag would rebuild everything in the other.
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/loom RUSTFLAGS='--cfg loom' \
    "$CARGO" test --quiet --profile tool --package shadow-mmu --features mutants --lib model::

step "the shadow MMU under stress"
for mode in notes unsync; do
    target/tool/roost mmu-stress --mode "$mode" --threads 2 --seconds 15 --seed 1
done

step "planted bugs are found"
# A call of its own: features are for all packages of a call. Loom's were above.
"$CARGO" test --quiet --profile tool --package shadow-mmu --package mmu-stress \
    --features mutants --lib --test mutants mutation

step "whole-system tests"
guest_program linux-guest guest-checks
guest_program l0-ref l0-ref
guest_program l0-ref l0-check
guest_program l0-ref l0-ref --features flaws --target-dir "${CARGO_TARGET_DIR:-target}/flaws"
guest_program l0-ref l0-direct --features direct
guest_program bench guest-bench
for kind in cloud generic 6.12-cloud; do
    scripts/fetch-kernel.sh --kind "$kind"
done
scripts/fetch-grub.sh
scripts/debian-image.sh
"$CARGO" test --quiet --package roost-tests
