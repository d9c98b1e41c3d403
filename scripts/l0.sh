#!/bin/sh
# Boots a guest under L1 under the reference L0, l0-ref. Arguments go to `roost run`.
#
# scripts/l0.sh [--build] [--emulate] [--icount] [--cpu MODEL] [--check] [--l0 WORDS] [--l1-log FILE]
#               [--timeout SECONDS] [ROOST RUN OPTION...]
#
# On a machine with KVM, l0-ref runs here. Elsewhere, or with --emulate, QEMU emulates a machine with
# SVM and nested paging; a stock kernel runs there with its KVM, and l0-ref as its only program:
#   QEMU -> stock kernel with kvm-amd -> l0-ref -> L1 -> the guest
# --build builds l0-ref first. --check runs l0-check, which looks at l0-ref and KVM alone.
# --icount lets the emulated machine's time go by instructions; --cpu is the model it has. --l0 gives
# l0-ref options, in one word. Without --kernel, a stock kernel is booted to a busybox shell. The exit
# status is that of l0-ref, 124 if the time limit passed.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
images=${ROOST_IMAGES:-$target/roost}
roost=$target/tool/roost
programs=$target/x86_64-unknown-linux-gnu/tool

build=no emulate=no check=no accel=tcg log=/dev/null
icount='' limit='' kernel='' append='' l0='' cpu=max,la57=off
. scripts/kvm-machine.sh
kvm_works || emulate=yes
# Our options are taken out, in one turn of the list of arguments.
turns=$#
while [ "$turns" -gt 0 ]; do
    turns=$((turns - 1))
    option=$1
    shift
    case $option in
        --build) build=yes ;;
        --emulate) emulate=yes ;;
        --check) check=yes ;;
        --icount) emulate=yes accel=tcg,thread=single icount="-icount shift=0,sleep=off" ;;
        --cpu | --l0 | --l1-log | --timeout)
            if [ "$turns" -eq 0 ]; then
                echo "$0: $option wants a value" >&2
                exit 2
            fi
            turns=$((turns - 1))
            case $option in --cpu) cpu=$1 ;; --l0) l0=$1 ;; --l1-log) log=$1 ;; *) limit=$1 ;; esac
            shift
            ;;
        *)
            case $option in
                --kernel | --kernel=*) kernel=given ;;
                --append | --append=*) append=given ;;
            esac
            set -- "$@" "$option"
            ;;
    esac
done

if [ "$build" = yes ]; then
    . scripts/toolchain.sh
    need_rust
    guest_program l0-ref l0-ref
    guest_program l0-ref l0-check
fi

folder=$(mktemp -d "${TMPDIR:-/tmp}/roost-l0-XXXXXX")
trap 'rm -rf "$folder"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

stock=$(scripts/fetch-kernel.sh)
if [ "$check" = yes ]; then
    memory=128
elif [ -z "$kernel" ]; then
    "$roost" initrd --output "$folder/shell.cpio" --busybox
    set -- --kernel "$stock" --initrd "$folder/shell.cpio" "$@"
    [ -n "$append" ] || set -- "$@" --append "console=hvc0 quiet"
fi
if [ "$check" = no ]; then
    memory=$("$roost" run --pack "$folder/module" "$@")
fi

limited() {
    if [ -n "$limit" ]; then
        # In the foreground, or it could not read the terminal.
        timeout --foreground "$limit" "$@"
    else
        "$@"
    fi
}

if [ "$emulate$check" = noyes ]; then
    limited "$programs/l0-check"
    exit
elif [ "$emulate" = no ]; then
    # shellcheck disable=SC2086 # $l0 is words or none
    limited "$programs/l0-ref" --l1 "$images/l1" --module "$folder/module" --memory "$memory" \
        --log "$log" $l0
    exit
fi

# shellcheck disable=SC2046 # a list of words
set -- --busybox --init scripts/l0-init.sh $(kvm_modules)
if [ "$check" = yes ]; then
    echo l0-check >"$folder/command"
    set -- "$@" --add "$programs/l0-check=/bin/l0-check:755"
else
    echo "l0-ref --l1 /l1 --module /module --memory $memory --log /dev/ttyS1 $l0" >"$folder/command"
    set -- "$@" --add "$programs/l0-ref=/bin/l0-ref:755" --add "$images/l1=/l1" \
        --add "$folder/module=/module"
fi
"$roost" initrd --output "$folder/l0.cpio" "$@" --add "$folder/command=/command"

# The ramdisk is there twice while it is unpacked, and l0-ref copies the module into L1.
ramdisk=$(($(wc -c <"$folder/l0.cpio") >> 20))
# l0-ref's exit status is the last line of the log.
[ "$log" != /dev/null ] || log=$folder/log
status=0
# shellcheck disable=SC2086 # $icount is words or none
limited qemu-system-x86_64 -M pc -accel $accel $icount -cpu "$cpu${icount:+,-x2apic}" -m $((memory + 192 + 3 * ramdisk)) \
    -nodefaults -display none -no-reboot -chardev stdio,id=console,signal=off \
    -serial chardev:console -chardev "file,id=log,path=$log" -serial chardev:log \
    -kernel "$stock" -initrd "$folder/l0.cpio" \
    -append "$kvm_words" 2>"$folder/errors" || status=$?
machine_errors
if [ "$status" -eq 124 ]; then
    echo "l0.sh: the time limit passed; QEMU was ended" >&2
    exit 124
fi
said=$(tr -d '\r' <"$log" | sed -n 's/^@l0-ref //p')
if [ "$status" -ne 0 ] || [ -z "$said" ]; then
    echo "l0.sh: QEMU failed with status $status, l0-ref with ${said:-none}" >&2
    exit 4
fi
exit "$said"
