#!/bin/sh
# Fetches Debian's PV GRUB, a kernel for Xen's PV interface that is no Linux, and prints the paths of
# two images of it: as it is packaged, and one made here with its own tool and modules that shows a
# menu. What is in cache/ already is not looked for again.
set -eu
[ $# -eq 0 ] || { echo "usage: scripts/fetch-grub.sh" >&2 && exit 2; }
cd "$(dirname "$0")/.."
. scripts/apt.sh

folder=cache/grub-xen
packages='grub-common grub-xen-bin grub-xen-host'

# fetch: downloads and unpacks into $folder, which appears only when complete.
fetch() {
    rm -rf "$folder.new"
    mkdir -p "$folder.new/menu/grub"
    # shellcheck disable=SC2086 # several words
    (cd "$folder.new" && apt-get -q download $packages) || return 1
    for package in "$folder.new"/*.deb; do
        basename "$package" .deb >>"$folder.new/packages"
        dpkg-deb -x "$package" "$folder.new/root"
        rm "$package"
    done
    cp "$folder.new/root/usr/lib/grub-xen/grub-x86_64-xen.bin" "$folder.new/packaged"
    cat >"$folder.new/menu/grub/grub.cfg" <<'END'
set timeout=-1
menuentry "Say hello" { echo "hello from entry 1"; sleep 600 }
menuentry "Power off" { halt }
END
    tar -cf "$folder.new/menu.tar" -C "$folder.new/menu" grub
    echo 'normal (memdisk)/grub/grub.cfg' >"$folder.new/early.cfg"
    "$folder.new/root/usr/bin/grub-mkimage" --format x86_64-xen --output "$folder.new/menu.elf" \
        --directory "$folder.new/root/usr/lib/grub/x86_64-xen" --prefix '(memdisk)/grub' \
        --config "$folder.new/early.cfg" --memdisk "$folder.new/menu.tar" \
        normal configfile memdisk tar halt echo sleep ls || return 1
    rm -rf "$folder"
    mv "$folder.new" "$folder"
}

if [ ! -e "$folder/menu.elf" ]; then
    need_apt "PV GRUB"
    if ! quietly "Fetching PV GRUB" fetch; then
        need_root "package lists"
        update_lists
        quietly "Fetching PV GRUB" fetch
    fi
fi
echo "$folder/packaged"
echo "$folder/menu.elf"
