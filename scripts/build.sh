#!/bin/sh
# Builds the images into target/roost and the host tool. Needs what setup.sh installs.
#
# scripts/build.sh [--checks]
#
# --checks  also builds L1 with its checks of itself (a model of the TLB, a check of the dirty log),
#           into target/roost/checks, one that interrupts the switcher everywhere, into
#           target/roost/traps, and one that breaks rules of the guest ABI, into
#           target/roost/flaws
set -eu
case "$#:${1-}" in
0:) checks=no ;;
1:--checks) checks=yes ;;
*)
    echo "usage: scripts/build.sh [--checks]" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
. scripts/toolchain.sh
need_rust

target=${CARGO_TARGET_DIR:-target}
# One build at a time: cargo leaves an image in the same place whatever its features are, and another
# build would take it from there.
mkdir -p "$target"
exec 9>"$target/build.lock"
if ! flock -n 9; then
    echo "Waiting for another build ..." >&2
    flock 9
fi
# The first build takes a minute or two and shows how far it is.
quiet=--quiet
[ -e "$target/tool/roost" ] || quiet=

# image PACKAGE BINARY FOLDER [OPTION...]: builds an image with cargo's OPTIONs into FOLDER.
image() {
    package=$1 binary=$2 folder=$3
    shift 3
    # shellcheck disable=SC2086 # $quiet is a word or none
    bare build $quiet --release --package "$package" --bin "$binary" "$@"
    mkdir -p "$folder"
    # A new name each time, so that a running QEMU keeps the file it has open.
    cp "$target/$bare_target/release/$binary" "$folder/$binary.new"
    mv "$folder/$binary.new" "$folder/$binary"
}

# Before the others, which leave in cargo's folder what is expected there.
if [ "$checks" = yes ]; then
    image l1-host l1 "$target/roost/checks" --features tlb-model,dirty-check
    ln -sf ../shim "$target/roost/checks/shim"
    image l1-host l1 "$target/roost/traps" --features switcher-traps
    # The L1s that break the guest ABI, in one.
    image l1-host l1 "$target/roost/flaws" --features flaws
    ln -sf ../shim "$target/roost/flaws/shim"
fi
for image in $bare_images; do
    # One call each: built together, an image would get the features of another's dependencies.
    image "${image%:*}" "${image#*:}" "$target/roost"
done
# shellcheck disable=SC2086 # $quiet is a word or none
"$CARGO" build $quiet --profile tool --package roost
