#!/bin/sh
# The first program of a guest that measures its network (scripts/bench-net.sh): loads the card's driver,
# whichever it is, runs what the word net.tests= on the command line names, and powers off. Results are lines
# that start with @net.
export PATH=/bin:/sbin LD_LIBRARY_PATH=/lib
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t tmpfs tmpfs /tmp

# word NAME DEFAULT: the value of NAME= on the command line.
word() {
    value=$(tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p")
    echo "${value:-$2}"
}

# stream NAME [OPTION...]: MB/s of TCP, as who receives counts them.
stream() {
    begin "$1"
    shift
    iperf3 -c "$peer" -p "$stream_port" -n "$bytes" -f k --connect-timeout 10000 "$@" >/tmp/said 2>&1
    rate=$(awk '/receiver/ { for (i = 2; i <= NF; i++) if ($i ~ /bits/) print $(i - 1) / 8000 }' /tmp/said)
    result "$name" "$rate"
}

# answers NAME [OPTION...]: requests a second that were answered, one after another.
answers() {
    begin "$1"
    shift
    sockperf ping-pong -i "$peer" -p "$answer_port" -t "$seconds" -m 64 "$@" >/tmp/said 2>&1
    rate=$(sed -n 's/.*\[Valid Duration\] RunTime=\([0-9.]*\) sec.*ReceivedMessages=\([0-9]*\).*/\2 \1/p' /tmp/said |
        awk '{ print $1 / $2 }')
    result "$name" "$rate"
}

# result NAME VALUE: says it, and how long the CPU was busy since `begin`.
result() {
    [ -n "$2" ] || cat /tmp/said
    busy=$(echo "$before $(cat /proc/uptime)" | awk '{ print ($3 - $1) - ($4 - $2) }')
    echo "@net $1 ${2:-none} $busy"
}

begin() {
    name=$1 before=$(cat /proc/uptime)
}

stream_port=$(word net.stream 5201) answer_port=$(word net.answer 11111)
bytes=$(word net.bytes 64M) seconds=$(word net.seconds 3) peer=10.0.2.2
for module in /modules/*; do
    insmod "$module" 2>/dev/null
done
tries=0
while ! [ -e /sys/class/net/eth0 ] && [ $tries -lt 100 ]; do
    sleep 0.1 && tries=$((tries + 1))
done
ip link set lo up && ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up
ping -c 1 -W 5 "$peer" >/dev/null || echo "@net: $peer does not answer"
for test in $(word net.tests "" | tr , ' '); do
    case $test in
        tcp_out) stream tcp_out ;;
        tcp_in) stream tcp_in -R ;;
        tcp_rr) answers tcp_rr --tcp ;;
        udp_rr) answers udp_rr ;;
        none) ;;
        *) echo "@net: no test is called $test" ;;
    esac
done
poweroff -f
