# Makes machines for QEMU to emulate: with SVM, on which a stock kernel runs KVM. Sourced by the other
# scripts, from the project's root, with $folder (a folder for files) and $stock (the kernel) set.
# shellcheck shell=sh disable=SC2154

# kvm_works: true if programs can use KVM here. There are machines with a /dev/kvm whose CPU has nothing for it.
kvm_works() {
    [ -r /dev/kvm ] && [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo
}

# The kernel's command line.
# shellcheck disable=SC2034 # for those who source this
kvm_words="console=ttyS0 quiet loglevel=1 panic=-1 tsc=reliable no_timer_check"

# machine_errors: what QEMU said in $folder/errors. What the emulator lacks of a CPU model is no news.
machine_errors() {
    grep -v "TCG doesn't support requested feature" "$folder/errors" >&2 || true
}

# modules NAME...: the files of these modules and of those they need, in the order to load them.
modules() {
    for name in "$@"; do
        pattern=$(echo "$name" | tr _ - | sed 's/-/[-_]/g')
        file=$(find "$(dirname "$stock")/root" -name "$pattern.ko*" | head -n 1)
        [ -n "$file" ] || continue # built into the kernel
        plain=$folder/$name.ko
        [ ! -e "$plain" ] || continue
        case $file in
            *.xz) xz -dc "$file" ;;
            *.zst) zstd -qdc "$file" ;;
            *) cat "$file" ;;
        esac >"$plain"
        # A function has no variables of its own; a subshell does.
        # shellcheck disable=SC2046 # a list of words
        (modules $(tr '\0' '\n' <"$plain" | sed -n 's/^depends=//p' | tr , ' '))
        echo "$plain"
    done
}

# add_modules NAME...: words for `roost initrd` that put these and what they need into /modules, to be loaded by
# name.
add_modules() {
    number=10
    rm -f "$folder"/*.ko
    for module in $(modules "$@"); do
        echo "--add $module=/modules/$number-${module##*/}"
        number=$((number + 1))
    done
}

# kvm_modules: the same for KVM's modules, and what loads them is put into /kvm-init.sh.
kvm_modules() {
    echo "--add scripts/kvm-init.sh=/kvm-init.sh"
    add_modules kvm_amd
}

# add_libraries PROGRAM...: words for `roost initrd` that put the libraries of these where their loader looks.
add_libraries() {
    ldd "$@" | awk '$3 ~ /^\// { print $3 } $1 ~ /^\// && NF == 2 { print $1 }' | sort -u |
        while read -r library; do
            case $library in
                /lib64/*) echo "--add $library=$library:755" ;;
                *) echo "--add $library=/lib/${library##*/}:755" ;;
            esac
        done
}
