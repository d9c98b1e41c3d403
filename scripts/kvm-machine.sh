# Makes machines for QEMU to emulate: with SVM, on which a stock kernel runs KVM. Sourced by the other
# scripts, from the project's root, with $folder (a folder for files) and $stock (the kernel) set.
# shellcheck shell=sh disable=SC2154

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

# kvm_modules: words for `roost initrd` that put KVM's modules into /modules, to be loaded by name.
kvm_modules() {
    number=10
    rm -f "$folder"/*.ko
    for module in $(modules kvm_amd); do
        echo "--add $module=/modules/$number-${module##*/}"
        number=$((number + 1))
    done
}
