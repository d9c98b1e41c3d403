#!/bin/sh
# Installs what is missing to build and run Roost. Says nothing if all is there.
#
# scripts/setup.sh [--tests | --debian | --bench]
#
# --tests   also what tests need beside: `roost image` and the machines on which they boot its images, OVMF
#           and Bochs; tools for disks; what --debian installs
# --debian  also what builds the image of a Debian
# --bench   also what measures disks: fio
set -eu
case "$#:${1-}" in
0:) tests=no debian=no bench=no ;;
1:--tests) tests=yes debian=yes bench=no ;;
1:--debian) tests=no debian=yes bench=no ;;
1:--bench) tests=no debian=no bench=yes ;;
*)
    echo "usage: scripts/setup.sh [--tests | --debian | --bench]" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
. scripts/toolchain.sh
. scripts/apt.sh

if [ "$(uname -m)" != x86_64 ]; then
    echo "Roost is built on x86-64 machines; this is $(uname -m)" >&2
    exit 1
fi

# static_busybox: the guest has no libraries, so a busybox that needs some does not do.
static_busybox() {
    busybox=$(command -v busybox) && ! ldd "$busybox" >/dev/null 2>&1
}

# rust_packages: the packages of a new enough Rust, from whatever this distribution calls it.
rust_packages() {
    newest=$(names 'rustc-1.*' | grep -x 'rustc-1\.[0-9]*' | sort -V | tail -n 1)
    newest=${newest#rustc-}
    if new_enough "$(candidate rustc-web)"; then # Debian's backport of a recent Rust
        echo rustc-web cargo-web rust-web-src rust-web-clippy rustfmt-web
    elif new_enough "$(candidate rustc)"; then
        echo rustc cargo rust-src rust-clippy rustfmt
    elif new_enough "$newest.0"; then # Ubuntu's versioned packages
        echo "rustc-$newest cargo-$newest rust-$newest-src rust-$newest-clippy rustfmt-$newest"
    fi
}

# new_enough VERSION: true for 1.N and later, N as in toolchain.sh.
new_enough() {
    minor=$(echo "$1" | sed -n 's/^1\.\([0-9]*\)\..*/\1/p')
    [ "${minor:-0}" -ge "$oldest_rust_minor" ]
}

# need FILE PACKAGE: the package is missing if the file is.
need() {
    [ -e "$1" ] || missing="$missing $2"
}

# find_missing: sets missing to the packages of what is not there, Rust's aside.
find_missing() {
    missing=
    command -v qemu-system-x86_64 >/dev/null || missing="$missing qemu-system-x86"
    static_busybox || missing="$missing busybox-static"
    command -v gcc >/dev/null || missing="$missing gcc"
    [ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
    command -v ld.lld >/dev/null || missing="$missing lld"
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
    if [ "$tests" = yes ]; then
        need /usr/bin/grub-mkrescue grub-common
        need /usr/lib/grub/i386-pc/moddep.lst grub-pc-bin
        need /usr/lib/grub/x86_64-efi/moddep.lst grub-efi-amd64-bin
        need /usr/bin/xorriso xorriso
        need /usr/bin/mformat mtools
        need /usr/bin/qemu-img qemu-utils
        need /usr/bin/xz xz-utils
        # Debian 12 has them in /sbin, which may or may not be the same.
        [ -e /sbin/debugfs ] || need /usr/sbin/debugfs e2fsprogs
        [ -e /sbin/sfdisk ] || need /usr/sbin/sfdisk fdisk
        need /usr/share/ovmf/OVMF.fd ovmf
        need /usr/bin/bochs bochs
        need /usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so bochs-term
        need /usr/share/bochs/BIOS-bochs-latest bochsbios
        need /usr/share/bochs/VGABIOS-lgpl-latest vgabios
    fi
    if [ "$debian" = yes ]; then
        need /usr/bin/mmdebstrap mmdebstrap
        need /usr/bin/fakeroot fakeroot
        need /usr/bin/ssh-keygen openssh-client
        need /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
        [ -e /sbin/mke2fs ] || need /usr/sbin/mke2fs e2fsprogs
        # Another user than root builds in a user namespace.
        [ "$(id -u)" -eq 0 ] || need /usr/bin/newuidmap uidmap
    fi
    [ "$bench" = no ] || need /usr/bin/fio fio
}

find_missing
rust_missing=
use_rust || rust_missing=yes
[ -n "$missing$rust_missing" ] || exit 0

what="${missing# }${rust_missing:+ and Rust 1.$oldest_rust_minor or newer}"
need_apt "$what"
need_root "$what"
update_lists
if [ -n "$rust_missing" ]; then
    if dpkg-query -W -f '${Status}' rustup 2>/dev/null | grep -q ' installed'; then
        echo "rustup is installed and must not be mixed with packaged Rust. Run:" \
            "rustup target add x86_64-unknown-none" >&2
        exit 1
    fi
    rust=$(rust_packages)
    if [ -z "$rust" ]; then
        echo "apt knows no Rust 1.$oldest_rust_minor or newer: enable your distribution's security" \
            "and update suites, or install rustup and run: rustup target add $bare_target" >&2
        exit 1
    fi
    missing="$missing $rust"
fi
# shellcheck disable=SC2086 # a list of words
install $missing
# Those that conflict with one of them are gone, such as another version's tools for disks.
find_missing
# shellcheck disable=SC2086 # a list of words
[ -z "$missing" ] || install $missing
need_rust
