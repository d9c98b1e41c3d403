# Sets up the machine that kvm-machine.sh makes, from inside. Sourced by its first programs.
# shellcheck shell=sh

mount_all() {
    mount -t devtmpfs dev /dev
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    # Large pages for L1's memory: the guest's 256 MiB are zeroed in 1 s, not in 5.
    echo always >/sys/kernel/mm/transparent_hugepage/shmem_enabled
}

load_kvm() {
    for module in /modules/*; do
        insmod "$module" || echo "init: cannot load $module"
    done
    # Bytes must reach the guest as they are typed, and lines begin at the left.
    stty -F /dev/ttyS0 raw -echo opost onlcr
}

kvm_init() {
    mount_all
    load_kvm
}
