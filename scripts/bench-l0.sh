#!/bin/sh
# Measures what a guest costs that L0 runs for L1: the guest benchmark in it, and in guests of KVM with
# the same kernel, memory and machine. All instructions are counted, by everybody involved.
#
# scripts/bench-l0.sh [--no-build] [--logs FOLDER] [--rows A,B] [RUN...]
#
# RUNs, by default the first three:
#   direct    QEMU -> kernel with kvm-amd -> l0-direct -> guest
#   assisted  QEMU -> kernel with kvm-amd -> l0-ref -> L1 -> guest, run by L0
#   nested    QEMU -> kernel with kvm-amd -> l0-direct -> kernel with kvm-amd -> l0-direct -> guest
#   shadow    QEMU -> kernel with kvm-amd -> l0-ref -> L1 -> guest, run by L1
# --no-build  everything is built
# --logs      keep the logs there; logs of runs that are not asked for are read from there
# --rows      rows of the benchmark
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
roost=$target/tool/roost
programs=$target/x86_64-unknown-linux-gnu/tool
logs=$target/bench-l0
rows=noop,getppid,read_zero_1b,pipe_pingpong,sig_deliver,mmap_touch_munmap,pf_storm_1t,munmap_per_page
rows=$rows,dontneed_refault,cow_break,fork_exit,fork_exec_true,mprotect_flip,cpuid,rdmsr_dev,sha256_block
memory=512 build=yes
while [ $# -gt 0 ]; do
    case $1 in
        --no-build) build=no && shift ;;
        --logs) logs=${2:?} && shift 2 ;;
        --rows) rows=${2:?} && shift 2 ;;
        *) break ;;
    esac
done
[ $# -gt 0 ] || set -- direct assisted nested
mkdir -p "$logs"

if [ "$build" = yes ]; then
    . scripts/toolchain.sh
    need_rust
    scripts/build.sh
    guest_program l0-ref l0-ref
    guest_program l0-ref l0-direct --features direct
    guest_program bench guest-bench
fi
stock=$(scripts/fetch-kernel.sh)
folder=$(mktemp -d "${TMPDIR:-/tmp}/roost-bench-XXXXXX")
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
. scripts/kvm-machine.sh

msr=$(find "$(dirname "$stock")/root" -name 'msr.ko' | head -n 1)
"$roost" initrd --init "$programs/guest-bench" --output "$folder/bench.cpio" ${msr:+--add "$msr=/msr.ko"}
words="console=hvc0 quiet panic=-1 bench.target=2000 bench.batches=15 bench.only=$rows"

# ramdisk NAME INITRD ARGUMENTS WORDS: a ramdisk whose only guest has INITRD and the command line WORDS.
ramdisk() {
    echo "$3" >"$folder/arguments" && echo "$4" >"$folder/append"
    # shellcheck disable=SC2046 # a list of words
    "$roost" initrd --busybox --init scripts/bench-l0-init.sh $(kvm_modules) \
        --add "$programs/l0-direct=/bin/l0-direct:755" --add "$stock=/kernel" --add "$2=/initrd" \
        --add "$folder/arguments=/arguments" --add "$folder/append=/append" --output "$folder/$1.cpio"
}

# machine RAMDISK MIB: runs the emulated machine.
machine() {
    timeout 1800 qemu-system-x86_64 -M pc -accel tcg,thread=single -icount shift=0,sleep=off \
        -cpu EPYC-v3,-x2apic -m "$2" -nodefaults -display none -no-reboot -serial stdio -kernel "$stock" \
        -initrd "$folder/$1.cpio" -append "$kvm_words" </dev/null 2>"$folder/errors"
}

# through_l1 BACKEND
through_l1() {
    scripts/l0.sh --emulate --icount --cpu EPYC-v3 --timeout 1800 --l1-log "$logs/$1.l1.log" \
        --kernel "$stock" --initrd "$folder/bench.cpio" --memory "${memory}M" --backend "$1" --stats \
        --append "$words" </dev/null
}

for run in "$@"; do
    echo "bench-l0.sh: $run, log in $logs/$run.log" >&2
    case $run in
        direct)
            ramdisk direct "$folder/bench.cpio" "--memory $memory" "$words"
            machine direct $((2 * memory)) >"$logs/$run.log"
            ;;
        nested)
            ramdisk inner "$folder/bench.cpio" "--memory $memory" "$words"
            ramdisk nested "$folder/inner.cpio" "--nested --memory $((2 * memory))" "$kvm_words"
            machine nested $((3 * memory)) >"$logs/$run.log"
            ;;
        assisted | shadow) through_l1 "$run" >"$logs/$run.log" ;;
        *) echo "$0: no run is called $run" >&2 && exit 2 ;;
    esac
    if ! grep -q '^@DONE' "$logs/$run.log"; then
        echo "$0: the benchmark did not come to its end; see $logs/$run.log" >&2
        exit 1
    fi
done

# A table: instructions of an operation, smallest batch, and how many times those of the first run. A
# guest of L1 has the TSC of L1, which starts at 0 as that of the others does.
for run in direct assisted nested shadow; do
    [ -e "$logs/$run.log" ] || continue
    started=$(sed -n 's/.*"l0_started_tsc":\([0-9]*\).*/\1/p' "$logs/$run.l1.log" 2>/dev/null | head -n 1)
    echo "run $run ${started:-0}"
    tr -d '\r' <"$logs/$run.log" | grep '^@'
done | awk '
    $1 == "run" { run = $2; started = $3; runs[++count] = run }
    $1 == "@I" && $2 == "tsc_at_init" && run != "shadow" { note("start to init", $3 - started) }
    $1 == "@I" && $2 == "tsc_at_init" { note("the same, from the start of L1", $3) }
    $1 == "@I" && $2 == "calib_2M_insns_tsc" { note("2,000,004 instructions", $3) }
    $1 == "@R" {
        name = $0; sub(/.*"name":"/, "", name); sub(/".*/, "", name)
        cost = $0; sub(/.*"min_tsc":/, "", cost); sub(/,.*/, "", cost)
        note(name, cost)
    }
    function grouped(cost, digits, text) {
        if (cost < 100) return sprintf("%.1f", cost)
        digits = sprintf("%.0f", cost)
        while (length(digits) > 3) {
            text = "," substr(digits, length(digits) - 2) text
            digits = substr(digits, 1, length(digits) - 3)
        }
        return digits text
    }
    function note(name, cost) {
        if (!(name in known)) { known[name] = 1; names[++rows] = name }
        costs[run, name] = cost
    }
    END {
        line = "| operation |"; rule = "|---|"
        for (r = 1; r <= count; r++) {
            line = line " " runs[r] " |" (r > 1 ? " ratio |" : "")
            rule = rule "---:|" (r > 1 ? "---:|" : "")
        }
        print line; print rule
        for (n = 1; n <= rows; n++) {
            line = "| " names[n] " |"; base = costs[runs[1], names[n]]
            for (r = 1; r <= count; r++) {
                cost = costs[runs[r], names[n]]
                line = line " " (cost == "" ? "-" : grouped(cost + 0)) " |"
                if (r > 1) line = line " " (cost == "" || base == "" ? "-" : sprintf("%.3f", cost / base)) " |"
            }
            print line
        }
    }'
