#!/bin/sh
# The first program of the machine, or guest, whose disk is measured: loads the disk's driver, does the jobs in
# /jobs and powers off. Each line of these has a name and options of fio's; fio's terse result is printed behind
# `@F NAME`, and what L1 has counted meanwhile, in a guest of Roost, behind `@C NAME`.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
for module in /modules/*.ko; do
    insmod "$module"
done
tries=0
until [ -b /dev/xvda ] || [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { echo "@E no disk" && poweroff -f; }
    sleep 0.1
done
disk=/dev/vda
[ -b $disk ] || disk=/dev/xvda
# Requests go to the disk in the order in which they are made.
echo none >"/sys/block/${disk##*/}/queue/scheduler"
while read -r name words; do
    counted=
    [ $disk = /dev/vda ] || counted="guest-counters $name"
    # shellcheck disable=SC2086 # lists of words
    line=$($counted fio --name="$name" --filename=$disk --direct=1 --thread --randseed=1 --minimal $words)
    echo "@F $name $line"
done </jobs
echo "@DONE"
poweroff -f
