#!/bin/sh
# Runs the conformance suite on the reference L0 and prints its report.
#
# tests/l0-conformance/run.sh [--cpus N] [--icount] [--l0 WORDS] [--timeout SECONDS] [WORD...]
#
# WORDs are the suite's command line (see src/main.rs): only=map,tlb flips=100000 ...
# --cpus    L1's CPUs, 2 unless said otherwise
# --icount  count instructions: a tick of the TSC is one; without races, for measurements
# --l0      options for l0-ref, in one word
#
# On a machine with KVM, l0-ref runs here; elsewhere in an emulated machine with SVM (scripts/l0.sh
# says more). Any other L0 boots target/roost/l0-conformance by PVH in the place of L1.
# The exit status is 0 if no check failed, 1 if some did, 124 if the time limit passed.
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
image=${ROOST_IMAGES:-$target/roost}/l0-conformance
roost=$target/tool/roost
l0_ref=${ROOST_L0_REF:-$target/x86_64-unknown-linux-gnu/tool/l0-ref}
memory=192

cpus=2 limit=600 l0= icount=
while [ $# -gt 0 ]; do
    case $1 in
        --cpus | --l0 | --timeout)
            if [ $# -lt 2 ]; then
                echo "$0: $1 wants a value" >&2
                exit 2
            fi
            case $1 in --cpus) cpus=$2 ;; --l0) l0=$2 ;; *) limit=$2 ;; esac
            shift 2
            ;;
        --icount) icount="-icount shift=0,sleep=off" && shift ;;
        *) break ;;
    esac
done
for file in "$image" "$roost" "$l0_ref"; do
    if [ ! -e "$file" ]; then
        echo "$0: $file does not exist: run scripts/build.sh and scripts/l0.sh --build first" >&2
        exit 2
    fi
done

# The report is complete with its summary; its status is in the count of failures.
judge() {
    tee "$1" || true
    if grep -q '^# .* 0 failed' "$1" && ! grep -q '^Bail out!' "$1"; then
        return 0
    fi
    return 1
}

folder=$(mktemp -d "${TMPDIR:-/tmp}/roost-conformance-XXXXXX")
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

. scripts/kvm-machine.sh
if kvm_works && [ -z "$icount" ]; then
    # shellcheck disable=SC2086 # a list of words
    { timeout "$limit" "$l0_ref" --l1 "$image" --memory "$memory" --cpus "$cpus" $l0 \
        --append "$*" </dev/null || echo "$?" >"$folder/status"; } | sed -u 's/\r//' | judge "$folder/report"
    exit
fi

stock=$(scripts/fetch-kernel.sh)
echo "$*" >"$folder/append"
echo "--memory $memory --cpus $cpus $l0" >"$folder/arguments"
# shellcheck disable=SC2046 # a list of words
set -- --busybox --init tests/l0-conformance/init.sh $(kvm_modules)
"$roost" initrd --output "$folder/l0.cpio" "$@" --add "$folder/arguments=/arguments" \
    --add "$folder/append=/append" --add "$l0_ref=/bin/l0-ref:755" --add "$image=/l1"

status=0
ramdisk=$(($(wc -c <"$folder/l0.cpio") >> 20))
# shellcheck disable=SC2086 # a list of words
{ timeout "$limit" qemu-system-x86_64 -M pc -accel tcg $icount -cpu max,la57=off${icount:+,-x2apic} \
    -m $((memory + 256 + 3 * ramdisk)) -nodefaults -display none -no-reboot \
    -serial stdio -serial "file:$folder/log" -kernel "$stock" -initrd "$folder/l0.cpio" \
    -append "$kvm_words" </dev/null 2>"$folder/errors" || echo "$?" >"$folder/status"; } | sed -u 's/\r//' | judge "$folder/report" || status=1
machine_errors
[ ! -e "$folder/status" ] || status=$(cat "$folder/status")
exit "$status"
