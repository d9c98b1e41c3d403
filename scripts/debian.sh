#!/bin/sh
# Boots Debian from a disk, to its login on the console, and builds the disk's image before if it is not
# there. Needs what setup.sh --debian installs.
#
# scripts/debian.sh [--release bookworm|trixie] [--folder FOLDER] [--fresh] [--autologin]
#     [--append WORDS] [--memory SIZE] [--ssh PORT] [--direct] [OPTION...]
#
# --release    which Debian; bookworm without it, or what RELEASE says
# --folder     where its disk is, disk.img; cache/debian-RELEASE without it
# --fresh      forgets what earlier runs have left on the disk
# --autologin  root is logged in at the console without a password, which is `roost`
# --append     more words for the kernel
# --memory     its memory; 768M without it
# --ssh        the port of 127.0.0.1 that leads to its ssh server; 2222 without it. An option --net of
#              `roost run` takes the place of this network
# --direct     no Roost: the same disk and kernel in QEMU alone, to compare with
#
# OPTIONs go to `roost run`, or to QEMU.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}

release=${RELEASE:-bookworm} folder="" fresh=no words="" memory=768M ssh=2222 net=user direct=no
# Our options are taken out, in one turn of the list of arguments.
turns=$#
while [ "$turns" -gt 0 ]; do
    turns=$((turns - 1))
    option=$1
    shift
    case $option in
        --fresh) fresh=yes ;;
        --autologin) words="$words roost.autologin" ;;
        --direct) direct=yes ;;
        --release | --folder | --append | --memory | --ssh)
            if [ "$turns" -eq 0 ]; then
                echo "$0: $option wants a value" >&2
                exit 2
            fi
            turns=$((turns - 1))
            case $option in
                --release) release=$1 ;;
                --folder) folder=$1 ;;
                --append) words="$words $1" ;;
                --memory) memory=$1 ;;
                --ssh) ssh=$1 ;;
            esac
            shift
            ;;
        *)
            case $option in --net | --net=*) net=given ;; esac
            set -- "$@" "$option"
            ;;
    esac
done

image=$(scripts/debian-image.sh --release "$release")
folder=${folder:-${image%/*}}
disk=$folder/disk.img
if [ "$fresh" = yes ] || [ ! -e "$disk" ]; then
    cp --sparse=always --reflink=auto "$image" "$disk.new"
    chmod u+w "$disk.new"
    mv "$disk.new" "$disk"
fi

# in_boot PREFIX: the newest file of /boot on the disk whose name starts so.
in_boot() {
    /sbin/debugfs -R 'ls -p /boot' "$disk" 2>/dev/null | cut -d/ -f6 | grep "^$1" | sort -V | tail -n 1
}

# What the system has itself, so that a kernel it has upgraded to is started.
kernel=$(in_boot vmlinuz-)
for file in "$kernel" "initrd.img-${kernel#vmlinuz-}"; do
    rm -f "$folder/${file%%-*}"
    /sbin/debugfs -R "dump /boot/$file $folder/${file%%-*}" "$disk" 2>/dev/null
    if [ ! -s "$folder/${file%%-*}" ]; then
        echo "$0: no /boot/$file on $disk: --fresh starts with a new disk" >&2
        exit 1
    fi
done

if [ "$direct" = yes ]; then
    exec qemu-system-x86_64 -M q35 -accel tcg -cpu max -m "$memory" -nodefaults -display none \
        -no-reboot -serial mon:stdio -kernel "$folder/vmlinuz" -initrd "$folder/initrd.img" \
        -append "root=LABEL=roost-root ro console=ttyS0 quiet$words" \
        -drive "if=none,id=disk,format=raw,file=$disk" -device virtio-blk-pci,drive=disk \
        -netdev "user,id=net,hostfwd=tcp:127.0.0.1:$ssh-:22" -device virtio-net-pci,netdev=net "$@"
fi
[ "$net" = given ] || set -- --net user --forward "$ssh:22" "$@"
exec "$target/tool/roost" run --kernel "$folder/vmlinuz" --initrd "$folder/initrd.img" \
    --append "root=LABEL=roost-root ro console=hvc0 quiet$words" --memory "$memory" --disk "$disk" \
    --restart on-reboot "$@"
