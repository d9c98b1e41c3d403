#!/bin/sh
# Runs the kernel's own x86 selftests in a guest and on the plain emulated machine, and compares.
# Needs what build.sh builds; see docs/selftests.md.
#   tests/x86-selftests/run.sh [--kind cloud|generic|6.12-cloud]    default: cloud
set -eu
cd "$(dirname "$0")/../.."
. scripts/apt.sh
here=tests/x86-selftests
target=${CARGO_TARGET_DIR:-target}
out=$target/x86-selftests
# Vsyscalls are off by default; their tests would have little to test. On one CPU kernels replace LOCK
# prefixes by DS ones, which QEMU's TCG does not ignore in 64-bit code: while a test has a DS with a
# base, an interrupt would be the kernel's end.
append="quiet panic=-1 vsyscall=emulate noreplace-smp"

case "${1:-} $#" in
    ' 0') kind=cloud ;;
    '--kind 2') kind=$2 ;;
    *)
        sed -n 's/^#   /usage: /p' "$0" >&2
        exit 2
        ;;
esac

# links FLAG: true if gcc links a static program with it.
links() {
    echo 'int main(void) { return 0; }' | gcc "$1" -static -x c -o "$out/links" - 2>/dev/null
}

# install_missing: the compiler with its 32-bit half, and what unpacks and builds the sources.
install_missing() {
    missing=
    links -m64 || missing="$missing gcc libc6-dev"
    links -m32 || missing="$missing gcc-multilib"
    command -v make >/dev/null || missing="$missing make"
    command -v xz >/dev/null || missing="$missing xz-utils"
    [ -n "$missing" ] || return 0
    need_apt "${missing# }"
    need_root "${missing# }"
    update_lists
    # shellcheck disable=SC2086 # a list of words
    install $missing
}

# source_package: the oldest packaged kernel source, which on Debian is that of its own kernel.
source_package() {
    names 'linux-source-[0-9]*' | sort -V | head -n 1
}

# unpack PACKAGE: downloads it and keeps what the tests are built from, in $sources, which appears
# only when complete.
unpack() {
    rm -rf "$sources.new"
    mkdir -p "$sources.new"
    (cd "$sources.new" && apt-get -q download "$1") || return 1
    dpkg-deb --fsys-tarfile "$sources.new"/*.deb |
        tar -xO --wildcards './usr/src/linux-source-*.tar.xz' | xz -dc -T0 |
        tar -x -C "$sources.new" --strip-components=1 --wildcards \
            '*/tools/testing/selftests/lib.mk' '*/tools/testing/selftests/*.h' \
            '*/tools/testing/selftests/x86' '*/arch/x86/include/asm/desc_defs.h'
    rm "$sources.new"/*.deb
    [ -e "$sources.new/tools/testing/selftests/x86/Makefile" ] || return 1
    rm -rf "$sources"
    mv "$sources.new" "$sources"
}

# fetch_source: the sources in cache/, fetched unless they are there.
fetch_source() {
    sources=cache/x86-selftests
    [ ! -e "$sources/tools/testing/selftests/x86/Makefile" ] || return 0
    need_apt "the kernel's sources"
    package=$(source_package)
    if [ -z "$package" ] || ! quietly "Fetching $package" unpack "$package"; then
        need_root "package lists"
        update_lists
        package=$(source_package)
        if [ -z "$package" ]; then
            echo "apt knows no package linux-source-*: check your package sources" >&2
            exit 1
        fi
        quietly "Fetching $package" unpack "$package"
    fi
}

# build: the tests by the kernel's own Makefile, statically, since the ramdisk has no libraries.
build() {
    mkdir -p "$out/root/tests"
    make -C "$sources/tools/testing/selftests/x86" OUTPUT="$(realpath "$out/root/tests")" \
        EXTRA_CFLAGS="-static -DCAN_BUILD_32 -DCAN_BUILD_64" all_64 all_32
}

# natively: boots the kernel on the emulated machine itself. QEMU's TCG takes the stack accesses of
# IRET and far returns at CPL3 for supervisor accesses and faults on them under SMAP.
natively() {
    timeout 900 qemu-system-x86_64 -accel tcg -cpu max,smap=off -m 512M -display none -no-reboot \
        -serial stdio -monitor none -kernel "$kernel" -initrd "$out/initrd.cpio" \
        -append "console=ttyS0 $append" </dev/null
}

in_guest() {
    "$target/tool/roost" run --accel tcg --kernel "$kernel" --initrd "$out/initrd.cpio" \
        --memory 512M --append "console=hvc0 $append" --timeout 900 --l1-log "$out/l1.log" </dev/null
}

# tested MACHINE: what the tests came to there: name, tab, status and numbers of OK, FAIL and SKIP
# lines. 4 is how a selftest says that it cannot run.
tested() {
    tr -d '\r' <"$out/$1.log" | awk '
        /^BEGIN / { ok = failed = skipped = 0 }
        /\[OK\]/ { ok++ }
        /\[FAIL\]/ { failed++ }
        /\[SKIP\]/ { skipped++ }
        /^RESULT / {
            status = "fail"
            if ($3 == 0) status = "pass"
            if ($3 == 4) status = "skip"
            if ($3 > 128) status = "signal-" ($3 - 128)
            if ($3 == 143) status = "timeout"
            printf "%s\t%s %d/%d/%d\n", $2, status, ok, failed, skipped
        }'
}

# run_on MACHINE COMMAND: runs it and leaves MACHINE.log and MACHINE.tsv.
run_on() {
    echo "Running the tests: $1 ..." >&2
    if ! "$2" >"$out/$1.log" 2>&1 || ! tr -d '\r' <"$out/$1.log" | grep -qx DONE; then
        tail -n 40 "$out/$1.log" >&2
        echo "The machine did not get to the end of the tests: $1 (log: $out/$1.log)" >&2
        exit 1
    fi
    tested "$1" >"$out/$1.tsv"
}

# compare: the table; fails if there is a difference that is not listed, or the other way round.
# A line of the list: kernel kind or `any` | test | native | guest | why.
compare() {
    awk -v kind="$kind" -F '\t' '
        FILENAME == ARGV[1] {
            if ($0 !~ /^#/ && split($0, part, / *\| */) == 5 && (part[1] == "any" || part[1] == kind))
                listed[part[2]] = part[3] "\t" part[4]
            next
        }
        FILENAME == ARGV[2] { native[$1] = $2; next }
        FNR == 1 { printf "%-28s %-18s %-18s\n", "test (OK/FAIL/SKIP)", "native", "guest" }
        {
            verdict = ""
            if ($1 in listed) {
                verdict = listed[$1] == native[$1] "\t" $2 ? "as listed" : "NOT AS LISTED"
            } else if (native[$1] != $2) {
                verdict = "DIFFERENT"
            }
            wrong += verdict ~ /^[DN]/
            printf "%-28s %-18s %-18s %s\n", $1, native[$1], $2, verdict
            delete listed[$1]
            delete native[$1]
        }
        END {
            for (test in native) { wrong++; print test ": only ran natively" }
            for (test in listed) { wrong++; print test ": listed, and there is no such test" }
            exit wrong != 0
        }' "$here/differences" "$out/native.tsv" "$out/guest.tsv"
}

mkdir -p "$out"
install_missing
fetch_source
kernel=$(scripts/fetch-kernel.sh --kind "$kind")
if ! build >"$out/build.log" 2>&1; then
    cat "$out/build.log" >&2
    exit 1
fi
"$target/tool/roost" initrd --output "$out/initrd.cpio" --busybox --init "$here/init" --dir "$out/root"
run_on native natively
run_on guest in_guest
if compare; then
    echo "All as expected. What the tests printed: $out/native.log, $out/guest.log"
else
    echo "Not as expected. Compare $out/native.log with $out/guest.log, or correct $here/differences." >&2
    exit 1
fi
