#!/bin/sh
# Measures what each kind of exit costs, and writes the table of them, docs/exits.md.
#
# scripts/exits.sh [--cpu MODEL] [--json FILE] [--no-page] [WORD...]
#
# WORDs are the guest's command line: rounds=N, and L1's own
# --cpu      a CPU model of QEMU's; EPYC-v3 without it
# --json     writes what was measured to FILE, too
# --no-page  prints the page and leaves docs/exits.md as it is
set -eu
cd "$(dirname "$0")/.."
. scripts/toolchain.sh
need_rust
target=${CARGO_TARGET_DIR:-target}
images=${ROOST_IMAGES:-$target/roost}

cpu=EPYC-v3 json='' page=docs/exits.md
while [ $# -gt 0 ]; do
    case $1 in
        --cpu) cpu=${2:?} && shift 2 ;;
        --json) json=${2:?} && shift 2 ;;
        --no-page) page='' && shift ;;
        *) break ;;
    esac
done

folder=$(mktemp -d "${TMPDIR:-/tmp}/roost-exits-XXXXXX")
trap 'rm -rf "$folder"' EXIT
"$target/tool/roost" run --accel tcg --icount --cpu "$cpu" --kernel "$images/exits" --memory 64M \
    --timeout 180 --l1-log "$folder/log" --append "$*" </dev/null >"$folder/said" ||
    { cat "$folder/said" >&2 && exit 1; }
[ -z "$json" ] || grep -a '^{' "$folder/said" >"$json"
"$CARGO" run --quiet --profile tool --package exits <"$folder/said" >"$folder/page"
if [ -n "$page" ]; then
    cp "$folder/page" "$page"
else
    cat "$folder/page"
fi
