#!/bin/sh
# Builds the disk image of a small Debian with systemd, its own kernel and an ssh server, and prints the
# image's path. One that is in cache/ is not built again.
#
# scripts/debian-image.sh [--release bookworm|trixie]
#
# MIRROR=URL  the Debian mirror that packages come from, now and in the system itself; a Debian takes its own
#
# Needs what setup.sh --debian installs. Root builds by chroot; another user needs sub-ids and user
# namespaces (mmdebstrap's mode "unshare"), or fakechroot.
set -eu
cd "$(dirname "$0")/.."
. scripts/apt.sh

# Room on the disk, of which the image takes only what is used.
size=8G
# MiB that building takes in cache/ and in the place of temporary files.
room=2600
# By whose account it is a system to work with: init, its bus and sessions; kernel and ramdisk; network.
packages=systemd-sysv,udev,dbus,libpam-systemd,linux-image-cloud-amd64,initramfs-tools,zstd,kmod
packages=$packages,e2fsprogs,procps,less,nano,iproute2,systemd-resolved,openssh-server,ca-certificates

fail() {
    echo "$0: $*" >&2
    exit 1
}

# own_mirror: where this machine's packages come from, if it is a Debian.
own_mirror() {
    # shellcheck disable=SC2016 # it is apt-get that expands
    apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk '$1 == "Debian" && $2 ~ "/debian/?$" { sub("/$", "", $2); print $2; exit }'
}

release=bookworm
case "$#:${1-}" in
    0:) ;;
    2:--release) release=$2 ;;
    *)
        echo "usage: scripts/debian-image.sh [--release bookworm|trixie]" >&2
        exit 2
        ;;
esac
case $release in
    bookworm | trixie) ;;
    *) fail "release $release is not known here: take bookworm or trixie" ;;
esac

folder=cache/debian-$release
image=$folder/root.img
if [ -e "$image" ]; then
    echo "$image"
    exit
fi

mirror=${MIRROR:-$(own_mirror)}
[ -n "$mirror" ] ||
    fail "apt knows no Debian mirror here: name one by MIRROR=URL, or run apt-get update on a Debian"
for program in mmdebstrap fakeroot mke2fs ssh-keygen; do
    # Debian 12 has some in /sbin, where users do not look.
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null ||
        fail "$program is missing: run scripts/setup.sh --debian"
done
mkdir -p "$folder"
for place in "$folder" "${TMPDIR:-/tmp}"; do
    free=$(df -Pm "$place" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$room" ] ||
        fail "$place has $free MiB free and building takes $room: make room, or set TMPDIR"
done
new=$folder/new
rm -rf --one-file-system "$new"
mkdir "$new"
trap 'rm -rf --one-file-system "$new"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# packages_to FILE: the system as a tar file.
packages_to() {
    tar=$1
    set -- mmdebstrap
    # Nothing of this machine is to be seen in there but a /proc, which nobody else is to see.
    [ "$(id -u)" -ne 0 ] ||
        set -- unshare --mount "$@" --mode=root --skip=chroot/mount/dev,chroot/mount/sys
    # Files go in and out by mmdebstrap's own means: hooks may run as somebody who cannot see ours.
    # shellcheck disable=SC2016 # it is the hooks' shell that expands
    "$@" --variant=minbase --architectures=amd64 --include="$packages" \
        --essential-hook='upload scripts/debian/before.sh /roost.sh' \
        --essential-hook='chroot "$1" sh /roost.sh' \
        --customize-hook='echo root:roost | chroot "$1" chpasswd' \
        --customize-hook='mkdir "$1/repository" && cd "$1/repository" &&
            APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -q download hello' \
        --customize-hook='upload scripts/debian/repository.sh /roost.sh' \
        --customize-hook='chroot "$1" sh /roost.sh' \
        --customize-hook="copy-out /repository $new" \
        --customize-hook='rm -r "$1/roost.sh" "$1/repository"' \
        "$release" "$tar" "deb $mirror $release main" "deb $mirror $release-updates main" \
        "deb $mirror-security $release-security main"
}

# image_from FILE: the image from that tar file. fakeroot has files belong to whom they should.
image_from() {
    # shellcheck disable=SC2016 # it is the inner shell that expands
    PATH=$PATH:/usr/sbin:/sbin fakeroot -- sh -euc '
        mkdir "$1/root"
        tar -C "$1/root" --exclude="./dev/*" -xf "$2"
        scripts/debian/after.sh "$1/root" <"$1/id_ed25519.pub"
        truncate -s "$3" "$1/root.img"
        mke2fs -q -t ext4 -L roost-root -d "$1/root" \
            -E lazy_itable_init=0,lazy_journal_init=0 "$1/root.img"
    ' sh "$new" "$1" "$size"
}

ssh-keygen -q -t ed25519 -N '' -C roost -f "$new/id_ed25519"
quietly "Fetching and installing Debian $release (some minutes)" packages_to "$new/root.tar" ||
    fail "Debian could not be fetched or installed, for the reason above. The mirror is $mirror;" \
        "MIRROR=URL takes another"
quietly "Writing $image" image_from "$new/root.tar"
chmod a-w "$new/root.img"
rm -rf --one-file-system "$folder/repository"
mv "$new/id_ed25519" "$new/id_ed25519.pub" "$new/repository" "$new/root.img" "$folder/"
echo "$image"
