#!/bin/sh
# Builds the images into target/roost and the host tool. Needs what setup.sh installs.
set -eu
cd "$(dirname "$0")/.."
. scripts/toolchain.sh
need_rust

target=${CARGO_TARGET_DIR:-target}
# The first build takes a minute or two and shows how far it is.
quiet=--quiet
[ -e "$target/tool/roost" ] || quiet=
mkdir -p "$target/roost"
# shellcheck disable=SC2086 # $quiet is a word or none
for image in $bare_images; do
    package=${image%:*} binary=${image#*:}
    # One call each: built together, an image would get the features of another's dependencies.
    bare build $quiet --release --package "$package" --bin "$binary"
    # A new name each time, so that a running QEMU keeps the file it has open.
    cp "$target/$bare_target/release/$binary" "$target/roost/$binary.new"
    mv "$target/roost/$binary.new" "$target/roost/$binary"
done
# shellcheck disable=SC2086
"$CARGO" build $quiet --profile tool --package roost
