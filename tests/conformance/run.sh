#!/bin/sh
# Runs the conformance suite of the guest ABI on L1, in an emulated machine, and prints its report.
#
# tests/conformance/run.sh [--cpu MODEL] [--vcpus N] [--cpus N] [--flaw NAME] [--json FILE]
#                          [--timeout SECONDS] [WORD...]
#
# WORDs are the suite's command line (see src/main.rs): only=msr,apic slow list ...
# --cpu    a CPU model of QEMU's; without it, all that the emulator has
# --vcpus  how many vCPUs the guest has: 2 if not given
# --cpus   how many CPUs the machine has that they run on: 1 if not given
# --flaw   breaks a rule (FLAWS.md), in an L1 that scripts/build.sh --checks has built
# --json   writes the summary by rule to FILE
#
# Time goes by instructions, so that a busy host does not matter, unless the machine has several CPUs:
# those run side by side. Another hypervisor boots
# target/roost/conformance as ST-1 to ST-4 of docs/spec/guest.md say.
# The exit status is 0 if no check failed, 1 if some did, 124 if the time limit passed.
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
images=${ROOST_IMAGES:-$target/roost}
roost=$target/tool/roost

cpu='' json='' flaw='' limit=180 vcpus=2 cpus=1
while [ $# -gt 0 ]; do
    case $1 in
        --cpu | --vcpus | --cpus | --flaw | --json | --timeout)
            if [ $# -lt 2 ]; then
                echo "$0: $1 wants a value" >&2
                exit 2
            fi
            case $1 in
            --cpu) cpu="--cpu $2" ;;
            --vcpus) vcpus=$2 ;;
            --cpus) cpus=$2 ;;
            --flaw) flaw=$2 ;;
            --json) json=$2 ;;
            *) limit=$2 ;;
            esac
            shift 2
            ;;
        *) break ;;
    esac
done
words=$*
clock=''
if [ "$cpus" -eq 1 ]; then clock=--icount; else words="$words patient"; fi
if [ -n "$flaw" ]; then
    export ROOST_IMAGES="$target/roost/flaws"
    words="$words roost.abi-flaw=$flaw"
fi
for file in "$images/conformance" "$roost" "${ROOST_IMAGES:-$images}/l1"; do
    if [ ! -e "$file" ]; then
        echo "$0: $file does not exist: run scripts/build.sh --checks first" >&2
        exit 2
    fi
done

folder=$(mktemp -d "${TMPDIR:-/tmp}/roost-conformance-XXXXXX")
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# For the checks of disks; those of network cards need two on one network.
truncate -s 1M "$folder/disk.img" "$folder/fixed.img"

# shellcheck disable=SC2086 # $cpu is an option with its value, or nothing; so is $clock
{ "$roost" run --accel tcg --cpus "$cpus" $clock $cpu --kernel "$images/conformance" --memory 64M \
    --vcpus "$vcpus" --disk "$folder/disk.img" --disk "$folder/fixed.img,ro" --net lan --net lan --device entropy --device console --device vsock=3 --timeout "$limit" --l1-log "$folder/log" --append "$words" </dev/null 2>"$folder/errors" ||
    echo "$?" >"$folder/status"; } | sed -u 's/\r//' | tee "$folder/report"

if [ -n "$json" ]; then
    grep -a '^{' "$folder/report" >"$json" || true
fi
# The suite ends as a kernel that panicked if checks failed, and so does one that could not go on.
status=0
[ ! -e "$folder/status" ] || status=$(cat "$folder/status")
if grep -aq '^# .* 0 failed' "$folder/report" || [ "$status" -eq 0 ] && ! grep -aq '^Bail out!' "$folder/report"; then
    exit "$status"
fi
if grep -aq '^# .* failed' "$folder/report"; then
    exit 1
fi
# Registers are of no use here, and the log is gone.
grep -v "^roost:   \|^roost: L1's log" "$folder/errors" >&2 || true
[ "$status" -ne 0 ] || status=1
exit "$status"
