#!/bin/busybox sh
# First program of the guests that run for a long time beside each other. The kernel's command line says
# which one this is and for how long: soak=victim|hotplug|forks seconds=N.
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
exec </dev/hvc0 >/dev/hvc0 2>&1

word() {
    sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline
}
role=$(word soak) seconds=$(word seconds)

# Milliseconds since start, by the kernel's clock.
now() {
    read -r up _ </proc/uptime
    echo "${up%.*}${up#*.}0"
}

end=$(($(now) + seconds * 1000))
rounds=0

fail() {
    echo "@soak $role FAILED in round $rounds: $*"
    dmesg | tail -50
    poweroff -f
}

# Its memory stays what it is, and its clocks go forward together, without a gap.
victim() {
    dd if=/dev/urandom of=/tmp/data bs=1M count=24 2>/dev/null
    first=$(sha256sum /tmp/data)
    gap=0 last=$(now) wall=$(date +%s) base=$(($(date +%s) * 1000 - $(now)))
    while [ "$(now)" -lt "$end" ]; do
        [ "$(sha256sum /tmp/data)" = "$first" ] || fail "its memory has changed"
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            last=$(now)
            usleep 20000
            new=$(now)
            [ "$new" -ge "$last" ] || fail "the clock went back from $last to $new"
            [ $((new - last)) -le "$gap" ] || gap=$((new - last))
        done
        new=$(date +%s)
        [ "$new" -ge "$wall" ] || fail "the wall clock went back from $wall to $new"
        wall=$new
        drift=$((new * 1000 - $(now) - base))
        [ "${drift#-}" -lt 3000 ] || fail "the clocks are $drift ms apart"
        rounds=$((rounds + 1))
    done
    report="longest_sleep_of_20ms=$gap"
}

# Its CPUs go and come back while it forks.
hotplug() {
    (while :; do /bin/true; done) &
    all=$(nproc)
    while [ "$(now)" -lt "$end" ]; do
        for cpu in $(seq $((all - 1))); do
            echo 0 >"/sys/devices/system/cpu/cpu$cpu/online" || fail "CPU $cpu does not go"
        done
        [ "$(nproc)" = 1 ] || fail "$(nproc) CPUs are left"
        for cpu in $(seq $((all - 1))); do
            echo 1 >"/sys/devices/system/cpu/cpu$cpu/online" || fail "CPU $cpu does not come"
        done
        [ "$(nproc)" = "$all" ] || fail "$(nproc) CPUs came back"
        rounds=$((rounds + 1))
    done
    report=cpus=$all
}

# Processes come and go on all its CPUs, talk through pipes and get signals.
forks() {
    while [ "$(now)" -lt "$end" ]; do
        for job in 1 2 3 4; do
            (
                for _ in 1 2 3 4 5 6 7 8; do
                    [ "$(seq 200 | sort -rn | head -1)" = 200 ] || echo "$job: wrong" >>/tmp/wrong
                done
            ) &
        done
        sleep 100 &
        kill $!
        wait
        [ ! -e /tmp/wrong ] || fail "$(cat /tmp/wrong)"
        rounds=$((rounds + 1))
    done
    report=cpus=$(nproc)
}

"$role"
bad=$(dmesg | grep -cE 'WARNING:|BUG:|Call Trace|rcu.*stall|soft lockup')
[ "$bad" = 0 ] || fail "the kernel complains"
[ "$rounds" -gt 0 ] || fail "nothing was done"
echo "@soak $role rounds=$rounds $report"
poweroff -f
