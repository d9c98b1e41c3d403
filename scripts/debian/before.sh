#!/bin/sh
# Run by mmdebstrap in the new root, before the packages that are not essential are there: what the
# kernel's package and that of initramfs-tools look at while they are set up.
set -eu
[ "$0" = /roost.sh ] || { echo "$0: this is not for the system you are on" >&2 && exit 1; }
mkdir -p /etc/initramfs-tools/conf.d /usr/share/initramfs-tools/modules.d
# A ramdisk with what is needed to reach the disk, here and on a machine of QEMU's, and no more: the
# emulator unpacks it at each start.
cat >/etc/initramfs-tools/conf.d/roost <<'EOF'
MODULES=list
COMPRESS=zstd
EOF
cat >/usr/share/initramfs-tools/modules.d/roost <<'EOF'
ext4
crc32c_generic
crc32c_intel
xen-blkfront
virtio_pci
virtio_blk
EOF
# The ramdisk gets the programs that check the root's file system if this says that it is checked.
echo 'LABEL=roost-root / ext4 errors=remount-ro 0 1' >/etc/fstab
