#!/bin/sh
# In QEMU's place: has FIRMWARE start L1, given both L1 and its module as one file, BOTH.
set -e
firmware=FIRMWARE both=BOTH l1=
for word do
    shift
    case $option in
    -kernel) l1=$word word=$firmware ;;
    -initrd) module=$word word=$both ;;
    esac
    option=$word
    set -- "$@" "$word"
done
# The tool also asks for the version.
if [ -n "$l1" ]; then
    cp "$l1" "$both"
    truncate -s %4096 "$both"
    set -- "$@" -append "bundle=$(stat -c %s "$both") WORDS"
    cat "$module" >>"$both"
fi
exec qemu-system-x86_64 "$@"
