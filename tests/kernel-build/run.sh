#!/bin/sh
# Builds a kernel (tinyconfig, two jobs) in a guest with two vCPUs, on its disk, and compares it with what the
# same compiler makes of the same sources on this machine.
#
# tests/kernel-build/run.sh [--direct]
#
# --direct  also does it on the emulated machine without Roost, and tells the ratio of the times
#
# Takes 6 GiB in cache/, and 40 minutes where there is no KVM: a compiler is slow in an emulator. Needs root, who alone
# can build in another root, and what setup.sh --debian installs. The exit status is 1 if the kernels differ.
set -eu
cd "$(dirname "$0")/../.."
. scripts/apt.sh

direct=no
case "$#:${1-}" in
0:) ;;
1:--direct) direct=yes ;;
*)
    echo "usage: $0 [--direct]" >&2
    exit 2
    ;;
esac
if [ "$(id -u)" -ne 0 ]; then
    echo "$0: this needs root: run it by sudo" >&2
    exit 2
fi

folder=cache/kernel-build
release=bookworm
packages=linux-image-cloud-amd64,initramfs-tools,zstd,kmod,e2fsprogs
packages=$packages,gcc,libc6-dev,make,flex,bison,bc,libelf-dev,xz-utils,linux-source-6.1

# system FILE: Debian with a compiler and a kernel's sources, as a tar file; builds there, too.
system() {
    # shellcheck disable=SC2016 # it is the hooks' shell that expands
    unshare --mount mmdebstrap --mode=root --skip=chroot/mount/dev,chroot/mount/sys \
        --variant=minbase --architectures=amd64 --include="$packages" \
        --essential-hook='upload scripts/debian/before.sh /roost.sh' \
        --essential-hook='chroot "$1" sh /roost.sh && rm "$1/roost.sh"' \
        --customize-hook='tar -C "$1" -xf "$1/usr/src/linux-source-6.1.tar.xz" &&
            rm "$1/usr/src/linux-source-6.1.tar.xz" && mv "$1/linux-source-6.1" "$1/linux"' \
        --customize-hook='upload tests/kernel-build/build.sh /build.sh' \
        --customize-hook='chmod +x "$1/build.sh"' \
        --customize-hook='chroot "$1" /build.sh | tee "$1/here"' \
        --customize-hook="download /here $folder.new/here" \
        "$release" "$1"
}

# image FILE: the disk's image from that.
image() {
    # shellcheck disable=SC2016 # it is the inner shell that expands
    PATH=$PATH:/usr/sbin:/sbin sh -euc '
        mkdir "$1/root"
        tar -C "$1/root" --exclude="./dev/*" -xf "$2"
        truncate -s 6G "$1/root.img"
        mke2fs -q -t ext4 -L roost-root -d "$1/root" \
            -E lazy_itable_init=0,lazy_journal_init=0 "$1/root.img"
        rm -rf --one-file-system "$1/root" "$2"
    ' sh "$folder.new" "$1"
}

if [ ! -e "$folder/root.img" ]; then
    rm -rf --one-file-system "$folder.new"
    mkdir -p "$folder.new"
    quietly "Installing a compiler and building on this machine (some minutes)" system "$folder.new/root.tar"
    quietly "Writing $folder/root.img" image "$folder.new/root.tar"
    mv "$folder.new" "$folder"
fi

# said FILE NAME: a value that the build in FILE has printed.
said() {
    grep -ao "@kernel-build .*" "$1" | tr ' \r' '\n\n' | sed -n "s/^$2=//p"
}

# build NAME OPTION...: the build on a new disk, by scripts/debian.sh and its options.
build() {
    name=$1
    shift
    echo "Building ($name) ..." >&2
    cp --sparse=always "$folder/root.img" "$folder/disk.img"
    # Programs at the same addresses each time: the emulator keeps what it has made of them, which is half of
    # its work otherwise.
    scripts/debian.sh --folder "$folder" --append "init=/build.sh norandmaps" --memory 1G "$@" </dev/null \
        >"$folder/$name" 2>&1 || true
    if [ "$(said "$folder/$name" status)" != 0 ]; then
        echo "$0: no kernel was built ($name): $folder/$name says why" >&2
        exit 1
    fi
    echo "$name: $(said "$folder/$name" seconds) s, vmlinux $(said "$folder/$name" vmlinux)"
}

echo "this machine: $(said "$folder/here" seconds) s, vmlinux $(said "$folder/here" vmlinux)"
build guest --vcpus 2 --cpus 2
if [ "$direct" = yes ]; then
    build direct --direct -smp 2
    echo "$(said "$folder/guest" seconds) $(said "$folder/direct" seconds)" |
        awk '{ printf "guest/direct: %.2f\n", $1 / $2 }'
fi
if [ "$(said "$folder/guest" vmlinux)" != "$(said "$folder/here" vmlinux)" ]; then
    echo "$0: the guest has built another kernel than this machine" >&2
    exit 1
fi
