#!/bin/sh
# Builds the smallest kernel from /linux, and says what came out and how long it took. As the first program
# of a system it also powers off.
set -eu
first=no
if [ $$ -eq 1 ]; then
    first=yes
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin
    mount -o remount,rw /
    mount -t proc proc /proc
    mount -t tmpfs tmp /tmp
fi
# What would differ from one build to the next.
export KBUILD_BUILD_TIMESTAMP=@0 KBUILD_BUILD_USER=roost KBUILD_BUILD_HOST=roost KBUILD_BUILD_VERSION=1
now() {
    cut -d' ' -f1 /proc/uptime
}
# A guest's end must not depend on whether it could build.
build() {
    cd /linux && make -s mrproper && make -s tinyconfig && make -s -j2 vmlinux
}
begin=$(now)
status=0
(build) || status=$?
seconds=$(echo "$begin $(now)" | awk '{ printf "%.1f", $2 - $1 }')
sum=$(sha256sum /linux/vmlinux | cut -d' ' -f1)
echo "@kernel-build status=$status seconds=$seconds vmlinux=$sum"
(cd /linux && make -s mrproper)
if [ "$first" = yes ]; then
    sync
    mount -o remount,ro /
    echo o >/proc/sysrq-trigger
    sleep 1000
fi
exit "$status"
