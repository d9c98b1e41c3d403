#!/bin/sh
# Builds the code's documentation into target/doc, checks the links of all texts, and builds the book
# into target/book if mdbook is installed. Warnings are errors.
set -eu
cd "$(dirname "$0")/.."
. scripts/toolchain.sh
need_rust

# Private items are documented too: they are what a reader of the code looks for.
RUSTDOCFLAGS="-D warnings" "$CARGO" doc --quiet --workspace --no-deps --document-private-items
"$CARGO" test --quiet --package roost-tests --test docs
if command -v mdbook >/dev/null 2>&1; then
    mdbook build docs
    echo "the book is in ${CARGO_TARGET_DIR:-target}/book"
else
    echo "mdbook is not installed (cargo install mdbook --no-default-features): the book is not built" >&2
fi
