#!/bin/sh
# Boots a stock kernel to a busybox shell. Arguments go to `roost run`.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
roost=$target/tool/roost
kernel=$(scripts/fetch-kernel.sh)
initrd=$target/roost/busybox.cpio
"$roost" initrd --output "$initrd" --busybox
exec "$roost" run --kernel "$kernel" --initrd "$initrd" --append "console=hvc0 quiet" "$@"
