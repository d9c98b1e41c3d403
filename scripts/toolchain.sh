# Decides which Rust builds the project. Sourced by the other scripts, from the project's root.
# shellcheck shell=sh
#
# A Rust serves if it is new enough, has clippy and rustfmt, and can build for bare metal: with the
# target's ready-made core (rustup), or with the library sources to build core from (distributions).
# Looked at in this order: rustup's toolchain, the distribution's, versioned ones (newest first).
#
# use_rust  sets RUST_BIN, CARGO, RUSTC, PATH and, for building core, RUSTC_BOOTSTRAP; fails without
#           a word if there is no Rust that serves.
# bare ...  is `cargo ...` for the bare-metal images.

# Rust 1.N or newer; rust-version in Cargo.toml says the same.
oldest_rust_minor=88
bare_target=x86_64-unknown-none
# The images: package:binary. build.sh copies each to target/roost under the binary's name.
# shellcheck disable=SC2034 # for those who source this
bare_images='l1-host:l1 l2-guest-shim:shim conformance:conformance l0-conformance:l0-conformance
hostile:hostile example-kernel:example exits:exits mailbox-firmware:mailbox-firmware'

# rust_serves BIN_DIR: true if the Rust there serves; sets bare_core to `ready` or `build`.
rust_serves() {
    for tool in cargo cargo-clippy cargo-fmt rustfmt rustc; do
        [ -x "$1/$tool" ] || return 1
    done
    minor=$("$1/rustc" --version 2>/dev/null | sed -n 's/^rustc 1\.\([0-9]*\)\..*/\1/p')
    [ "${minor:-0}" -ge "$oldest_rust_minor" ] || return 1
    libraries=$("$1/rustc" --print sysroot)/lib/rustlib
    if [ -d "$libraries/$bare_target/lib" ]; then
        bare_core=ready
    elif [ -f "$libraries/src/rust/library/core/Cargo.toml" ]; then
        bare_core=build
    else
        return 1
    fi
}

# rust_candidates: folders that may hold a Rust, one a line.
rust_candidates() {
    rustup=$(PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin" command -v rustup || true)
    if [ -n "$rustup" ] && rustc=$("$rustup" which rustc 2>/dev/null); then
        dirname "$rustc"
    fi
    echo /usr/bin
    for dir in /usr/lib/rust-1.*/bin; do
        [ ! -d "$dir" ] || echo "$dir"
    done | sort -rV
}

use_rust() {
    RUST_BIN=
    for dir in $(rust_candidates); do
        if rust_serves "$dir"; then
            RUST_BIN=$dir
            break
        fi
    done
    [ -n "$RUST_BIN" ] || return 1
    CARGO=$RUST_BIN/cargo
    RUSTC=$RUST_BIN/rustc
    # Cargo looks for clippy and fmt in its own bin folder first unless PATH names that folder.
    PATH=$RUST_BIN:$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    export CARGO RUSTC PATH
    if [ "$bare_core" = build ]; then
        # Building core is not a stable feature; stable compilers do it when told so.
        RUSTC_BOOTSTRAP=1
        export RUSTC_BOOTSTRAP
    fi
}

# need_rust: use_rust, or an error that says what to do.
need_rust() {
    use_rust && return
    echo "No Rust that can build Roost was found (1.$oldest_rust_minor or newer): run scripts/setup.sh" >&2
    exit 1
}

bare() {
    command=$1
    shift
    if [ "$bare_core" = build ]; then
        set -- -Zbuild-std=core,alloc,compiler_builtins \
            -Zbuild-std-features=compiler-builtins-mem "$@"
    fi
    "$CARGO" "$command" --target "$bare_target" "$@"
}

# guest_program PACKAGE BINARY [OPTION...]: builds, with cargo's OPTIONs, a program that can be a
# guest's only file.
guest_program() {
    package=$1 binary=$2
    shift 2
    # With --target, build scripts and macros, which run here, are built without these flags.
    RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static -C strip=symbols' \
        "$CARGO" build --quiet --profile tool --target x86_64-unknown-linux-gnu \
        --package "$package" --bin "$binary" "$@"
}
