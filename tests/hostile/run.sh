#!/bin/sh
# Runs the hostile guest on L1, in an emulated machine, and prints its report.
#
# tests/hostile/run.sh [--cpu MODEL] [--vcpus N] [--cpus N] [--memory SIZE] [--json FILE]
#                      [--timeout SECONDS] [WORD...]
#
# WORDs are the guest's command line (see src/main.rs): only=pvcs n=10000000 seed=7 list ...
# --cpu    a CPU model of QEMU's; without it, all that the emulator has
# --vcpus  how many vCPUs the guest has: 2 if not given
# --cpus   how many CPUs the machine has that they run on: 1 if not given
# --json   writes the summary by rule to FILE
# --timeout  when it is ended; without it, a limit that grows with n
#
# Time goes by instructions, and a seed repeats a run exactly, unless the machine has several CPUs: those
# run side by side. The exit status is 0 if nothing failed,
# 1 if something did, 3 if the guest died, 4 if L1 failed, 124 if the time limit passed.
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
images=${ROOST_IMAGES:-$target/roost}
roost=$target/tool/roost

cpu='' json='' memory=64M limit='' vcpus=2 cpus=1
while [ $# -gt 0 ]; do
    case $1 in
        --cpu | --vcpus | --cpus | --memory | --json | --timeout)
            if [ $# -lt 2 ]; then
                echo "$0: $1 wants a value" >&2
                exit 2
            fi
            case $1 in
                --cpu) cpu="--cpu $2" ;;
                --vcpus) vcpus=$2 ;;
                --cpus) cpus=$2 ;;
                --memory) memory=$2 ;;
                --json) json=$2 ;;
                *) limit=$2 ;;
            esac
            shift 2
            ;;
        *) break ;;
    esac
done
for file in "$images/hostile" "$roost" "$images/l1"; do
    if [ ! -e "$file" ]; then
        echo "$0: $file does not exist: run scripts/build.sh first" >&2
        exit 2
    fi
done

# Many times what a quiet machine takes.
if [ -z "$limit" ]; then
    count=1000000
    for word; do
        case $word in n=*[!0-9]* | n=) ;; n=*) count=${word#n=} ;; esac
    done
    limit=$((3000 + count / 500))
fi

clock=''
[ "$cpus" -ne 1 ] || clock=--icount

folder=$(mktemp -d "${TMPDIR:-/tmp}/roost-hostile-XXXXXX")
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

truncate -s 1M "$folder/disk.img"
# shellcheck disable=SC2086 # options with their values, or nothing
{ "$roost" run --accel tcg --cpus "$cpus" $clock $cpu --kernel "$images/hostile" \
    --disk "$folder/disk.img" --net lan --net lan --device entropy --device vsock=3 --vcpus "$vcpus" --memory "$memory" --timeout "$limit" --l1-log "$folder/log" --append "$*" </dev/null 2>"$folder/errors" ||
    echo "$?" >"$folder/status"; } | sed -u 's/\r//' | tee "$folder/report"

if [ -n "$json" ]; then
    grep -a '^{' "$folder/report" >"$json" || true
fi
status=0
[ ! -e "$folder/status" ] || status=$(cat "$folder/status")
if grep -aq 'L1 failed' "$folder/log"; then
    grep -a -A 20 'L1 failed' "$folder/log" >&2
    exit 4
fi
# The guest ends as a kernel that panicked if an attack went wrong.
if grep -aq '^# .* passed, .* failed$' "$folder/report"; then
    grep -aq '^# .* passed, .* 0 failed$' "$folder/report" || status=1
    exit "$status"
fi
cat "$folder/errors" >&2
exit "$status"
