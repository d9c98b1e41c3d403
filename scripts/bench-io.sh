#!/bin/sh
# Measures a disk of a stock kernel: as a guest of Roost, and started by QEMU in the same machine, where it drives
# the same virtio disk. The load is fio's, without a cache in the guest, on a raw image in memory. Writes
# docs/io-benchmarks.md.
#
# scripts/bench-io.sh [--no-build] [--logs FOLDER] [--rounds N] [--report] [--no-page] [--xen FILE]
#
# --no-build  everything is built
# --logs      keep the logs there; target/bench-io without it
# --rounds    how often each is run, one after the other in turns; the median counts. 3 without it
# --report    measures nothing: makes the page of the logs that are there
# --no-page   prints the page and leaves docs/io-benchmarks.md as it is
# --xen       lines `JOB VALUE` of a guest of Xen that did the same jobs; bench/xen-pv.txt without it
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
roost=$target/tool/roost
logs=$target/bench-io rounds=3 build=yes measure=yes page=docs/io-benchmarks.md xen=bench/xen-pv.txt
# Where the image is: what is there is to be in memory.
place=${ROOST_BENCH_IMAGES:-/dev/shm}
mib=256
while [ $# -gt 0 ]; do
    case $1 in
        --no-build) build=no && shift ;;
        --logs) logs=${2:?} && shift 2 ;;
        --rounds) rounds=${2:?} && shift 2 ;;
        --report) measure=no build=no && shift ;;
        --no-page) page= && shift ;;
        --xen) xen=${2:?} && shift 2 ;;
        *) echo "$0: $1 is no option; the script's first lines say what there is" >&2 && exit 2 ;;
    esac
done
if [ ! -r "$xen" ]; then
    echo "$0: cannot read $xen, the figures of Xen" >&2
    exit 2
fi
mkdir -p "$logs"
folder=$(mktemp -d "${TMPDIR:-/tmp}/roost-bench-io-XXXXXX")
image=
trap 'rm -rf "$folder" ${image:+"$image"}' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# jobs: what is measured: name, bytes of a request, fio's options. The same with fewer requests shows what fio
# itself costs.
jobs() {
    cat <<'END'
randread-1 4096 --rw=randread --ioengine=psync 2000
randwrite-1 4096 --rw=randwrite --ioengine=psync 2000
randread-16 4096 --rw=randread --ioengine=libaio --iodepth=16 8000
randwrite-16 4096 --rw=randwrite --ioengine=libaio --iodepth=16 8000
read-1m 1048576 --rw=read --ioengine=psync 256
write-1m 1048576 --rw=write --ioengine=psync 256
END
}

# ramdisk NAME MODULE...: one that does the jobs with these modules.
ramdisk() {
    name=$1
    shift
    # shellcheck disable=SC2046 # lists of words
    "$roost" initrd --busybox --init scripts/bench-io-init.sh $(add_modules "$@") $(add_libraries "$fio") \
        --add "$fio=/bin/fio:755" --add "$folder/jobs=/jobs" \
        --add "$target/x86_64-unknown-linux-gnu/tool/guest-counters=/bin/guest-counters:755" \
        --output "$folder/$name.cpio"
}

measure() {
    if ! fio=$(command -v fio); then
        echo "fio not found: install the package fio (scripts/setup.sh --bench)" >&2
        exit 1
    fi
    free=$(df -Pm "$place" | awk 'NR == 2 { print $4 }')
    if [ "$free" -lt $((mib + 64)) ]; then
        echo "$place has no room for an image of $mib MiB: name another folder in ROOST_BENCH_IMAGES" >&2
        exit 1
    fi
    stock=$(scripts/fetch-kernel.sh)
    # shellcheck source=scripts/kvm-machine.sh
    . scripts/kvm-machine.sh
    image=$(mktemp "$place/roost-bench-io-XXXXXX")
    # No holes: they are read in another way.
    dd if=/dev/zero of="$image" bs=1M count=$mib status=none
    jobs | while read -r name bytes words; do
        count=${words##* } words="${words% *} --bs=$bytes --size=${mib}m"
        echo "few-$name $words --number_ios=$((count / 8))"
        echo "$name $words --number_ios=$count"
    done >"$folder/jobs"
    ramdisk direct virtio_pci virtio_blk
    ramdisk roost xen_blkfront
    rm -f "$logs"/*.log
    round=1
    while [ $round -le "$rounds" ]; do
        for run in direct pti roost auto; do
            echo "bench-io.sh: $run, round $round of $rounds, log in $logs/$run-$round.log" >&2
            "run_$run" </dev/null >"$logs/$run-$round.log" 2>"$folder/errors" || true
            if ! grep -aq '^@DONE' "$logs/$run-$round.log"; then
                tail -n 3 "$folder/errors" >&2
                echo "$0: the jobs did not come to their end; see $logs/$run-$round.log" >&2
                exit 1
            fi
        done
        round=$((round + 1))
    done
    qemu-system-x86_64 --version | sed -n '1s/.* version \([^ ]*\).*/\1/p' >"$logs/qemu"
    basename "$(find "$(dirname "$stock")/root/lib/modules" -mindepth 1 -maxdepth 1)" >"$logs/kernel"
}

# As `roost run` has its machine.
run_direct() {
    direct
}

run_pti() {
    direct pti=on
}

# direct [WORD...]: a kernel without Roost.
direct() {
    timeout 1200 qemu-system-x86_64 -M q35 -accel tcg -cpu max -smp 1 -m 640 -nodefaults -display none \
        -no-reboot -serial stdio -kernel "$stock" -initrd "$folder/direct.cpio" \
        -append "console=ttyS0 quiet loglevel=1 panic=-1 tsc=reliable no_timer_check $*" \
        -drive "if=none,file=$image,format=raw,id=disk,discard=unmap" \
        -device virtio-blk-pci,drive=disk,num-queues=1,disable-legacy=on,rerror=report,werror=report
}

run_roost() {
    guest
}

run_auto() {
    guest --pti auto
}

# guest [OPTION...]: a guest of Roost.
guest() {
    "$roost" run --accel tcg --kernel "$stock" --initrd "$folder/roost.cpio" --memory 640M --timeout 1200 \
        --l1-log "$logs/$run-$round.l1" --disk "$image" --append "console=hvc0 quiet loglevel=1 panic=-1" "$@"
}

# lines: all that was printed, each after the name of its run and the round.
lines() {
    for run in direct pti roost auto; do
        for log in "$logs/$run"-*.log; do
            [ ! -e "$log" ] || tr -d '\r' <"$log" | sed -n "s/^@/$run @/p"
        done
    done
    sed -n 's/^[a-z]/xen @X &/p' "$xen"
}

report() {
    cat <<END
# Disk benchmarks

Made by \`scripts/bench-io.sh\`; do not edit.

A stock kernel ($(cat "$logs/kernel")) and Debian's fio, with \`direct=1\` and without an I/O scheduler, on a raw image in memory;
QEMU $(cat "$logs/qemu") with \`-M q35 -accel tcg -cpu max -smp 1\`, whose disk is \`virtio-blk-pci\` with one queue.

- *direct*: QEMU starts the kernel, which drives that disk by its module virtio_blk. *pti=on* is the same with that word on its
  command line: it writes CR3 at each system call then, as a guest must, whose kernel runs at the same level as its programs.
- *Roost*: the kernel is a guest, with its module xen-blkfront; L1 drives the disk. *auto* is the same with \`--pti auto\`, which
  on this CPU leaves L1 on the guest's page tables.
- *Xen PV*: the kernel is a guest of Xen 4.17 on the same machine, with the same module; a dom0 with Debian's generic 6.1 kernel and
  one vCPU drives the disk (xen-blkback), on the same CPU. Xen's own page-table isolation is off on this CPU (XPTI). It ran at another
  time (\`bench/xen-pv.txt\`).

Requests a second, medians of runs in turns, $(ls "$logs"/direct-*.log | wc -l) of each. Time on this machine is the emulator's: a CR3 write, of which each entry of
L1 has two, empties its TLB, which costs it far more than it does hardware. What does not depend on that are the
entries of L1 that a request takes; those that fio itself causes are subtracted.

END
    { jobs && lines; } | awk '
        $1 !~ /^(direct|pti|roost|auto|xen)$/ { names[++rows] = $1; bytes[$1] = $2; count[$1] = $NF; next }
        $2 == "@F" { split($4 $5 $6, f, ";"); rate = f[8] + f[49]; key = $1 SUBSEP $3; all[key, ++seen[key]] = rate }
        $2 == "@X" { all["xen", $3, ++seen["xen", $3]] = $4 }
        $1 == "roost" && $2 == "@C" {
            for (n = 4; n <= NF; n++) {
                split($n, pair, "=")
                if (pair[1] == "exits") { total[$3] += pair[2]; times[$3]++ }
                else if (sub(/^by\./, "", pair[1])) { by[$3, pair[1]] += pair[2]; kinds[pair[1]] = 1 }
            }
        }
        function median(key, n, i, j, swap) {
            n = seen[key]
            for (i = 1; i < n; i++) for (j = i + 1; j <= n; j++) if (all[key, j] < all[key, i]) {
                swap = all[key, i]; all[key, i] = all[key, j]; all[key, j] = swap
            }
            return n % 2 ? all[key, (n + 1) / 2] : (all[key, n / 2] + all[key, n / 2 + 1]) / 2
        }
        function ratio(value) { return sprintf("%.2f%s", value, value < 0.7 ? " !" : "") }
        function each(value, name) { return value / times[name] / (count[name] - int(count[name] / 8)) }
        END {
            print "| requests | depth | direct | pti=on | Roost | ratio | auto | ratio | target | Xen PV | entries of L1 per request | by |"
            print "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|"
            for (r = 1; r <= rows; r++) {
                name = names[r]; few = "few-" name; list = ""
                direct = median("direct" SUBSEP name); roost = median("roost" SUBSEP name)
                auto = median("auto" SUBSEP name)
                what = name; sub(/-.*/, "", what); depth = name ~ /-16$/ ? 16 : 1
                sub(/^rand/, "random ", what)
                for (kind in kinds) {
                    value = each(by[name, kind] - by[few, kind], name)
                    if (value >= 0.02) list = list sprintf("%s%s %.2f", list == "" ? "" : ", ", kind, value)
                }
                size = bytes[name] >= 1048576 ? "1 MiB" : "4 KiB"
                printf("| %s, %s | %d | %d | %d | %d | %s | %d | %s | 0.70 | %d | %.2f | %s |\n", what, size, depth, direct,
                    median("pti" SUBSEP name), roost, ratio(roost / direct), auto, ratio(auto / direct),
                    median("xen" SUBSEP name), each(total[name] - total[few], name), list)
            }
        }'
    printf '\n%s\n' '`!` marks a missed target.'
}

if [ "$build" = yes ]; then
    . scripts/toolchain.sh
    need_rust
    scripts/build.sh
    guest_program bench guest-counters
fi
[ "$measure" = no ] || measure
report >"$folder/page"
if [ -n "$page" ]; then
    cp "$folder/page" "$page"
fi
cat "$folder/page"
