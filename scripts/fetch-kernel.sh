#!/bin/sh
# Fetches the newest stock kernel of a kind and prints the path of its vmlinuz. Its package is
# unpacked beside it, in root/. A kernel that is in cache/ already is not looked for again.
#   fetch-kernel.sh [--kind cloud|generic|6.12-cloud]    default: cloud
#   fetch-kernel.sh 'PACKAGE PATTERN'                    for example 'linux-image-6.1.0-*-amd64'
set -eu
cd "$(dirname "$0")/.."
. scripts/apt.sh

usage() {
    sed -n 's/^#   /usage: /p' "$0" >&2
    exit 2
}

# pattern_of KIND: the packages that hold this kind. Debian 12 calls 6.1 its own and has 6.12 beside
# it, Debian 13 calls 6.12 its own; Ubuntu builds one flavour, which serves as every kind.
pattern_of() {
    case "${ID:-}-${VERSION_ID:-}:$1" in
        debian-12:cloud) echo 'linux-image-6.1.0-*-cloud-amd64' ;;
        debian-12:generic) echo 'linux-image-6.1.0-*-amd64' ;;
        debian-*:cloud | debian-*:6.12-cloud) echo 'linux-image-6.12*-cloud-amd64' ;;
        debian-*:generic) echo 'linux-image-6.12*-amd64' ;;
        ubuntu-*:cloud | ubuntu-*:generic | ubuntu-*:6.12-cloud) echo 'linux-image-[0-9]*-generic' ;;
        *:cloud | *:generic | *:6.12-cloud)
            echo "${PRETTY_NAME:-This system} has no $1 kernel that is known here:" \
                "give a package name pattern" >&2
            return 1
            ;;
        *) usage ;;
    esac
}

# newest PATTERN: the newest package that is a kernel to boot, of the plain flavour unless the
# pattern names another.
newest() {
    names "$1" | grep -vE -e '-(dbg|unsigned)$' | flavour "$1" | sort -V | tail -n 1
}

flavour() {
    case $1 in
        *cloud* | *rt*) cat ;;
        *) grep -vE -e '-(cloud|rt)-' ;;
    esac
}

# fetch PACKAGE: downloads and unpacks into $folder, which appears only when complete.
fetch() {
    rm -rf "$folder.new"
    mkdir -p "$folder.new"
    (cd "$folder.new" && apt-get -q download "$1") || return 1
    dpkg-deb -x "$folder.new"/*.deb "$folder.new/root"
    rm "$folder.new"/*.deb
    for config in "$folder.new"/root/boot/config-*; do
        if [ -e "$config" ] && ! grep -q '^CONFIG_XEN_PV=y' "$config"; then
            echo "$1 is built without CONFIG_XEN_PV; Roost cannot boot it"
            return 1
        fi
    done
    cp "$folder.new"/root/boot/vmlinuz-* "$folder.new/vmlinuz"
    echo "$1" >"$folder.new/package"
    rm -rf "$folder"
    mv "$folder.new" "$folder"
}

. /etc/os-release
case "${1:-}" in
    '') kind=cloud pattern=$(pattern_of cloud) ;;
    --kind)
        [ $# -eq 2 ] || usage
        kind=$2 pattern=$(pattern_of "$2")
        ;;
    -*) usage ;;
    *) kind=$(printf %s "$1" | tr -c 'A-Za-z0-9.' _) pattern=$1 ;;
esac

folder=cache/kernel-$kind
if [ ! -e "$folder/vmlinuz" ]; then
    need_apt "a kernel package"
    package=$(newest "$pattern")
    if [ -z "$package" ] || ! quietly "Fetching $package" fetch "$package"; then
        # Lists that are absent or old name packages that are gone.
        need_root "package lists"
        update_lists
        package=$(newest "$pattern")
        if [ -z "$package" ]; then
            echo "apt knows no package $pattern: check your package sources" >&2
            exit 1
        fi
        quietly "Fetching $package" fetch "$package"
    fi
fi
echo "$folder/vmlinuz"
