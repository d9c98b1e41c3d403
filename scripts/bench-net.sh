#!/bin/sh
# Measures a stock guest's network to the host and back, under Roost and directly on the same emulated machine,
# and writes docs/net-benchmarks.md. Wall time, so runs come in pairs and medians count; what a guest costs L1
# is counted, by one run a test.
#
# scripts/bench-net.sh [--no-build] [--pairs N] [--tests A,B] [--bytes MIB] [--md FILE] [--xen FILE]
#
# --md   the file whose tables are written anew; - for standard output
# --xen  lines `TEST VALUE` of a guest of Xen that ran the same tests; bench/xen-pv.txt without it
#
# Tests: tcp_out and tcp_in (iperf3), tcp_rr and udp_rr (sockperf, 64 bytes there and back).
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
roost=$target/tool/roost
build=yes pairs=5 mebibytes=64 seconds=3 tests=tcp_out,tcp_in,tcp_rr,udp_rr md=docs/net-benchmarks.md
xen=bench/xen-pv.txt
while [ $# -gt 0 ]; do
    case $1 in
        --no-build) build=no && shift ;;
        --pairs) pairs=${2:?} && shift 2 ;;
        --tests) tests=${2:?} && shift 2 ;;
        --bytes) mebibytes=${2:?} && shift 2 ;;
        --md) md=${2:?} && shift 2 ;;
        --xen) xen=${2:?} && shift 2 ;;
        *) echo "$0: unknown option $1; see the head of this file" >&2 && exit 2 ;;
    esac
done
if [ ! -r "$xen" ]; then
    echo "$0: cannot read $xen, the figures of Xen" >&2
    exit 2
fi
if [ "$build" = yes ]; then
    scripts/build.sh
fi
. scripts/apt.sh
stock=$(scripts/fetch-kernel.sh)
folder=$(mktemp -d "${TMPDIR:-/tmp}/roost-bench-XXXXXX")
servers=
trap '[ -z "$servers" ] || kill $servers 2>/dev/null; rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
. scripts/kvm-machine.sh

# The programs, of Debian's packages, which need not be installed.
packages() {
    rm -rf cache/bench-net.new && mkdir -p cache/bench-net.new
    (cd cache/bench-net.new && apt-get -q download iperf3 libiperf0 libsctp1 sockperf) || return 1
    for package in cache/bench-net.new/*.deb; do
        dpkg-deb -x "$package" cache/bench-net.new/root && rm "$package"
    done
    rm -rf cache/bench-net && mv cache/bench-net.new cache/bench-net
}
if ! [ -e cache/bench-net/root/usr/bin/sockperf ]; then
    need_apt "iperf3 and sockperf"
    quietly "Fetching iperf3 and sockperf" packages
fi
programs=$PWD/cache/bench-net/root/usr/bin
LD_LIBRARY_PATH=$PWD/cache/bench-net/root/usr/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH

# shellcheck disable=SC2046 # lists of words
"$roost" initrd --busybox --init scripts/bench-net-init.sh \
    $(add_modules virtio_pci virtio_net xen_netfront) $(add_libraries "$programs/iperf3" "$programs/sockperf") \
    --add "$programs/iperf3=/bin/iperf3:755" --add "$programs/sockperf=/bin/sockperf:755" \
    --output "$folder/initrd.cpio"

# free_port: a port that nobody listens at.
free_port() {
    port=$(($(od -An -N2 -tu2 /dev/urandom) % 20000 + 20000))
    while grep -q ":$(printf %04X $port) 0\{8\}:0000 0A" /proc/net/tcp; do port=$((port + 1)); done
    echo $port
}
stream=$(free_port) answer=$(free_port)
"$programs/iperf3" -s -B 127.0.0.1 -p "$stream" >/dev/null 2>&1 &
servers="$servers $!"
"$programs/sockperf" server --tcp -i 127.0.0.1 -p "$answer" >/dev/null 2>&1 &
servers="$servers $!"
"$programs/sockperf" server -i 127.0.0.1 -p "$answer" >/dev/null 2>&1 &
servers="$servers $!"

# run KIND TESTS [OPTION...]: the lines with results.
run() {
    kind=$1
    words="quiet panic=-1 net.stream=$stream net.answer=$answer net.bytes=${mebibytes}M net.seconds=$seconds net.tests=$2"
    shift 2
    case $kind in
        roost | auto)
            timeout 300 "$roost" run --kernel "$stock" --initrd "$folder/initrd.cpio" --memory 256M --net user \
                --append "console=hvc0 $words" "$@" </dev/null
            ;;
        direct | pti)
            [ $kind = direct ] || words="$words pti=on"
            timeout 300 qemu-system-x86_64 -M q35 -accel tcg -cpu max -m 256 -nodefaults -display none -no-reboot \
                -serial stdio -kernel "$stock" -initrd "$folder/initrd.cpio" -append "console=ttyS0 tsc=reliable no_timer_check $words" \
                -netdev user,id=net0 -device virtio-net-pci,netdev=net0,disable-legacy=on,romfile= \
                </dev/null 2>"$folder/errors"
            ;;
    esac >"$folder/said" || { cat "$folder/said" >&2 && exit 1; }
    results "$kind" <"$folder/said"
}

# results KIND: what a guest says that it has measured.
results() {
    tr -d '\r' | sed -n "s/^@net \([a-z_]*\) \([0-9.]*\) [0-9.]*\$/$1 \1 \2/p"
}

for pair in $(seq "$pairs"); do
    echo "bench-net.sh: pair $pair of $pairs" >&2
    run direct "$tests" && run pti "$tests" && run roost "$tests" && run auto "$tests" --pti auto
done >"$folder/results"
sed -n 's/^[a-z]/xen &/p' "$xen" >>"$folder/results"

# counts NAME TEST: what a test costs L1, and what it got done: MiB, or requests.
counts() {
    run roost "$2" --stats=json:"$folder/stats" >"$folder/rate"
    case $2 in
        *_rr) echo "test $1 $(awk -v s="$seconds" '{ print $3 * s }' "$folder/rate")" ;;
        *) echo "test $1 $mebibytes" ;;
    esac
    tr '{' '\n' <"$folder/stats" | awk '
        name != "" && match($0, /"count":[0-9]+/) { print "exit", name, substr($0, RSTART + 8, RLENGTH - 8) }
        /"vcpus":/ { exit }
        { name = ""; if (match($0, /"[a-z0-9_]+":$/)) name = substr($0, RSTART + 1, RLENGTH - 3) }'
    tr ',{}' '\n' <"$folder/stats" | awk '
        /"vcpus"/ { exit }
        /"net_/ { gsub(/[":]+/, " "); print "count", $1, $2 }'
}

# Each test once more, and a short one, which costs what its program costs by itself.
for test in $(echo "$tests" | tr , ' '); do
    (seconds=1 mebibytes=$((mebibytes / 8)) && counts "few-$test" "$test")
    counts "$test" "$test"
done >"$folder/counts"

table() {
    awk '
        function median(key, n, list, i, j, t) {
            n = split(values[key], list, " ")
            for (i = 2; i <= n; i++) for (j = i; j > 1 && list[j - 1] + 0 > list[j] + 0; j--) {
                t = list[j]; list[j] = list[j - 1]; list[j - 1] = t
            }
            return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
        }
        FILENAME ~ /results$/ {
            if (!($2 in seen) && $1 != "xen") { seen[$2] = 1; tests[++count] = $2 }
            values[$1, $2] = values[$1, $2] " " $3
            next
        }
        $1 == "test" { test = $2; done[test] = $3 }
        $1 == "exit" { exits[test, $2] = $3; if (!($2 in kind)) { kind[$2] = 1; kinds[++all] = $2 } }
        $1 == "count" { exits[test, $2] = $3 }
        END {
            print "| test | unit | direct | pti=on | Roost | ratio | auto | ratio | target | Xen PV |"
            print "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
            for (n = 1; n <= count; n++) {
                t = tests[n]; rr = t ~ /_rr$/
                r = median("roost" SUBSEP t); a = median("auto" SUBSEP t); d = median("direct" SUBSEP t)
                printf "| `%s` | %s | %.1f | %.1f | %.1f | %.2f | %.1f | %.2f | %.2f | %.1f |\n", t, rr ? "requests/s" : "MB/s",
                    d, median("pti" SUBSEP t), r, d ? r / d : 0, a, d ? a / d : 0, rr ? 0.65 : 0.7,
                    median("xen" SUBSEP t)
            }
            print ""
            print "| test | per | exits | of these |"
            print "|---|---|---:|---|"
            for (n = 1; n <= count; n++) {
                t = tests[n]; rr = t ~ /_rr$/
                per = done[t] - done["few-" t]
                sum = 0; text = ""
                for (k = 1; k <= all; k++) {
                    x = (exits[t, kinds[k]] - exits["few-" t, kinds[k]]) / per
                    sum += x
                    if (x >= 0.05) text = text sprintf("%s`%s` %.2f", text == "" ? "" : ", ", kinds[k], x)
                }
                printf "| `%s` | %s | %.2f | %s |\n", t, rr ? "request" : "MiB", sum, text
            }
            print ""
            print "| test | frames sent | of these long | frames received | of these long |"
            print "|---|---:|---:|---:|---:|"
            for (n = 1; n <= count; n++) {
                t = tests[n]
                printf "| `%s` | %d | %d | %d | %d |\n", t, exits[t, "net_tx_frames"], exits[t, "net_tx_long"],
                    exits[t, "net_rx_frames"], exits[t, "net_rx_long"]
            }
        }' "$folder/results" "$folder/counts"
}
if [ "$md" = - ]; then
    table
else
    # What stands before the first table is written by hand.
    sed '/^| test | unit/,$d' "$md" >"$folder/md"
    table >>"$folder/md"
    cp "$folder/md" "$md"
fi
