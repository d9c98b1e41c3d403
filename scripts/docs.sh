#!/bin/sh
# Builds the code's documentation into target/doc (what runs on bare metal into
# target/x86_64-unknown-none/doc), checks the links of all texts, and builds the book into target/book
# if mdbook is installed. Warnings are errors.
set -eu
cd "$(dirname "$0")/.."
. scripts/toolchain.sh
need_rust
RUSTDOCFLAGS="${RUSTDOCFLAGS:-} -D warnings"
export RUSTDOCFLAGS

# Private items are documented too: they are what a reader of the code looks for.
set -- --quiet --no-deps --document-private-items
bare_packages=switcher
for image in $bare_images; do
    bare_packages="$bare_packages ${image%:*}"
done
# with OPTION: the option once for each package that is for bare metal.
with() {
    for package in $bare_packages; do
        echo "$1=$package"
    done
}
# shellcheck disable=SC2046 # lists of words
{
    "$CARGO" doc "$@" --workspace $(with --exclude)
    bare doc "$@" --release $(with --package)
}
"$CARGO" test --quiet --package roost-tests --test docs
if command -v mdbook >/dev/null 2>&1; then
    mdbook build docs
    echo "the book is in ${CARGO_TARGET_DIR:-target}/book"
else
    echo "mdbook is not installed (cargo install mdbook --no-default-features): the book is not built" >&2
fi
