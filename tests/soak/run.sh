#!/bin/sh
# Everything at once: four guests with eight vCPUs on two CPUs, one of them hostile, one with CPUs that come
# and go, one that forks, and one that watches itself. Fails if L1 does, or if a guest notices anything.
# Usage: run.sh [SECONDS] [WORDS OF roost run...]; half an hour unless said otherwise.
set -eu
cd "$(dirname "$0")/../.."
mkdir -p "${CARGO_TARGET_DIR:-target}"
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
roost=$target/tool/roost
case ${1:-} in
    '' | -*) seconds=1800 ;;
    *) seconds=$1 && shift ;;
esac
folder=$(mktemp -d "${TMPDIR:-/tmp}/roost-soak-XXXXXX")
trap 'rm -rf "$folder"' EXIT

"$roost" initrd --output "$folder/soak.cpio" --busybox --init tests/soak/init.sh
cloud=$(scripts/fetch-kernel.sh)
later=$(scripts/fetch-kernel.sh --kind 6.12-cloud)

linux() {
    cat <<GUEST
[[guest]]
name = "$1"
kernel = "$PWD/${2#"$PWD"/}"
initrd = "$folder/soak.cpio"
append = "console=hvc0 quiet soak=$1 seconds=$seconds"
memory = "192M"
vcpus = $3
GUEST
}
{
    echo 'cpus = 2'
    echo 'console = "prefix"'
    linux victim "$cloud" 2
    linux hotplug "$cloud" 3
    linux forks "$later" 2
    # Without what counts on having the machine for itself. Some 500 attacks for each second, which takes it
    # about as long as the others.
    cat <<GUEST
[[guest]]
name = "hostile"
kernel = "$target/roost/hostile"
append = "n=$((seconds * 500)) seed=$seconds skip=storm.timer,storm.fast_timer,spin"
memory = "64M"
GUEST
} >"$folder/roost.toml"

status=0
"$roost" run --config "$folder/roost.toml" --l1-log "$folder/l1.log" \
    --timeout $((seconds * 4 + 600)) "$@" >"$folder/out" 2>"$folder/err" </dev/null || status=$?
# What comes after a check that failed says why.
grep -aE -A 3 '@soak|\| (not ok|# [0-9]+ passed)' "$folder/out" | grep -aE '@soak|\| (not ok|#)' || true

complain() {
    echo "soak: $*" >&2
    tail -n 40 "$folder/out" "$folder/err" "$folder/l1.log" >&2
    exit 1
}
[ "$status" = 0 ] || complain "the run ended with status $status"
! grep -q 'L1 failed' "$folder/l1.log" || complain "L1 failed"
for role in victim hotplug forks; do
    grep -aq "@soak $role rounds=" "$folder/out" || complain "$role did not get to its end"
done
grep -aqE 'hostile\| # [0-9]+ passed, [0-9]+ skipped, 0 failed' "$folder/out" ||
    complain "the hostile guest did not get to its end"
[ "$(grep -c 'root check: .* 0 violations' "$folder/l1.log")" -ge 4 ] || complain "no root was checked"
