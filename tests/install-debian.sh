#!/bin/sh
# Has a whole Debian VM install Roost into its boot menu, and judges each start after that, by BIOS and by UEFI:
# the menu's own entry, L1 with the system as its guest, and the menu's own again after the guest's restart,
# after the guest's death, and after an L1 that cannot start.
#
# Usage: install-debian.sh [--scsi] [PORT]
#
# --scsi  its disk is that of a SCSI controller, which is behind a bridge, as its network card is
# PORT    where its ssh server is on 127.0.0.1; 2299 without it
#
# GRUB comes from the Debian mirror that the VM knows. Takes a quarter of an hour with an emulator.
set -eu
cd "$(dirname "$0")/.."
devices="-device virtio-blk-pci,drive=disk -device virtio-net-pci,netdev=net"
later=$devices
if [ "${1:-}" = --scsi ]; then
    shift
    later="-device pcie-root-port,id=first,chassis=1 -device pcie-root-port,id=second,chassis=2
        -device virtio-scsi-pci,bus=first -device scsi-hd,drive=disk -device virtio-net-pci,bus=second,netdev=net"
fi
port=${1:-2299}
target=${CARGO_TARGET_DIR:-target}
folder=$target/install-debian
disk=$folder/disk.raw
# Sectors at which the partitions start: for GRUB by BIOS, for GRUB by UEFI, for the system.
bios=2048 firmware=8192 system=262144
machine=""

fail() {
    echo "$0: $*; what the machine said is in $folder" >&2
    exit 1
}

end_machine() {
    [ -z "$machine" ] || kill "$machine" 2>/dev/null || true
}
trap end_machine EXIT
trap 'exit 130' INT TERM

image=$(scripts/debian-image.sh)
rm -rf "$folder"
mkdir -p "$folder"

echo "the disk: $disk"
truncate -s 9G "$disk"
PATH=$PATH:/usr/sbin:/sbin sfdisk -q "$disk" <<END
label: gpt
start=$bios, size=4096, type=21686148-6449-6E6F-744E-656564454649
start=$firmware, size=131072, type=U
start=$system, size=16777216, type=L
END
dd if="$image" of="$disk" bs=1M seek=$((system / 2048)) conv=sparse,notrunc status=none
truncate -s 64M "$folder/esp"
mformat -i "$folder/esp" -T 131072 -B /dev/zero ::
dd if="$folder/esp" of="$disk" bs=512 seek=$firmware conv=notrunc status=none
for name in vmlinuz initrd.img; do
    file=$(/sbin/debugfs -R 'ls -p /boot' "$image" 2>/dev/null | cut -d/ -f6 | grep "^$name" | sort -V | tail -n 1)
    /sbin/debugfs -R "dump /boot/$file $folder/$name" "$image" 2>/dev/null
done

# start NAME OPTION...: starts the machine, whose console goes to the file NAME.
start() {
    console=$folder/$1
    shift
    # shellcheck disable=SC2086 # $devices are words
    qemu-system-x86_64 -M q35 -accel tcg -cpu max -m 1500 -smp 2 -nodefaults -vga std -display none \
        -serial "file:$console" -drive "if=none,id=disk,format=raw,file=$disk" \
        -netdev "user,id=net,hostfwd=tcp:127.0.0.1:$port-:22" $devices "$@" &
    machine=$!
}

# in_vm COMMAND: runs it there.
in_vm() {
    ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes \
        -o ConnectTimeout=10 -o ServerAliveInterval=30 -i "${image%/*}/id_ed25519" -p "$port" root@127.0.0.1 "$1"
}

# is_up WHERE: waits for another start than the last one, and judges that it is one on this: `hardware` or `roost`.
last=""
is_up() {
    looks=0
    while boot=$(in_vm 'cat /proc/sys/kernel/random/boot_id' 2>/dev/null) || boot=""
        [ -z "$boot" ] || [ "$boot" = "$last" ]; do
        kill -0 "$machine" 2>/dev/null || fail "the machine has ended"
        looks=$((looks + 1))
        [ "$looks" -lt 120 ] || fail "nobody answers at port $port"
        sleep 5
    done
    last=$boot
    # shellcheck disable=SC2016 # it is the VM's shell that expands
    seen=$(in_vm 'systemctl is-system-running --wait >&2
        if [ -e /sys/hypervisor/type ]; then echo roost; else echo hardware; fi' 2>"$folder/state") || true
    [ "$seen $(cat "$folder/state")" = "$1 running" ] || fail "expected $1, running, and found $seen, $(cat "$folder/state")"
    echo "up: $1"
}

# goes COMMAND: the last thing that the VM is told.
goes() {
    in_vm "$1" >/dev/null 2>&1 || true
}

is_off() {
    looks=0
    while kill -0 "$machine" 2>/dev/null; do
        looks=$((looks + 1))
        [ "$looks" -lt 120 ] || fail "the machine is not off"
        sleep 1
    done
    machine=""
    echo "off"
}

start setup -kernel "$folder/vmlinuz" -initrd "$folder/initrd.img" -append 'root=LABEL=roost-root ro console=ttyS0 quiet'
is_up hardware
echo "GRUB is installed there"
# The ramdisk of the image knows no SCSI disk: the first start has a virtio disk, and the system gets a ramdisk for both.
# shellcheck disable=SC2016 # it is the VM's shell that expands
in_vm 'disk=/dev/vda
    set -eu
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qqy install --no-install-recommends grub2-common grub-pc-bin grub-efi-amd64-bin
    mkdir -p /boot/efi
    mount "${disk}2" /boot/efi
    grub-install --target=i386-pc "$disk"
    grub-install --target=x86_64-efi --efi-directory=/boot/efi --removable --no-nvram
    echo "UUID=$(blkid -s UUID -o value "${disk}2") /boot/efi vfat umask=0077 0 1" >>/etc/fstab
    echo GRUB_DEFAULT=saved >/etc/default/grub
    echo GRUB_TIMEOUT=0 >>/etc/default/grub
    echo "GRUB_CMDLINE_LINUX=console=ttyS0" >>/etc/default/grub
    printf "virtio_scsi\nsd_mod\n" >>/etc/initramfs-tools/modules
    update-initramfs -u
    update-grub' >"$folder/grub" 2>&1 || fail "GRUB could not be installed ($folder/grub)"
goes poweroff
is_off

devices=$later
start bios
is_up hardware
tar -c -C "$target/tool" roost -C "$PWD/$target/roost" l1 shim | in_vm 'mkdir -p roost && tar -x -C roost'
in_vm 'ROOST_IMAGES=roost roost/roost install --apply' >"$folder/install" 2>&1 || fail "it is not installed ($folder/install)"
goes 'grub-reboot roost && systemctl reboot'
is_up roost
in_vm 'uname -r; cat /proc/cmdline; free -m; ip -br address; echo written there >/root/note; sync'
goes 'systemctl reboot'
is_up hardware
[ "$(in_vm 'cat /root/note')" = 'written there' ] || fail "what the guest wrote is lost"
goes 'grub-reboot roost && systemctl reboot'
is_up roost
echo "the guest dies"
goes 'sync; echo 1 >/proc/sys/kernel/sysrq; (sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &'
is_up hardware
grep -q "roost: guest 'system' died" "$console" || fail "L1 said nothing of the guest's death"
echo "L1 cannot start"
in_vm 'cp /boot/roost/bundle /root/bundle && head -c 100 /root/bundle >/boot/roost/bundle'
goes 'grub-reboot roost && systemctl reboot'
is_up hardware
grep -q 'roost: the bundle is damaged' "$console" || fail "L1 said nothing of its bundle"
in_vm 'cp /root/bundle /boot/roost/bundle && sed -i s/=saved/=roost/ /etc/default/grub && update-grub' 2>/dev/null
goes poweroff
is_off

start uefi -bios /usr/share/ovmf/OVMF.fd
is_up roost
in_vm 'sed -i s/=roost/=saved/ /etc/default/grub && ROOST_IMAGES=roost roost/roost install --undo' 2>"$folder/undo" ||
    fail "it is not removed ($folder/undo)"
goes 'systemctl reboot'
is_up hardware
left=$(in_vm 'ls -d /boot/roost; grep -rl roost /boot/grub/grub.cfg /etc/grub.d' 2>/dev/null) || true
[ -z "$left" ] || fail "$left is left of it"
goes poweroff
is_off
