# Asks and drives apt. Sourced by the other scripts, from the project's root.
# shellcheck shell=sh

# as_root ...: runs a command as root.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# need_apt WHAT: ends with a message if WHAT cannot be fetched here.
need_apt() {
    if ! command -v apt-get >/dev/null; then
        echo "Missing: $1. Only Debian and Ubuntu (apt-get) are known here; install it yourself." >&2
        exit 1
    fi
}

# need_root WHAT: ends with a message if WHAT cannot be installed by this user.
need_root() {
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
        echo "Missing: $1. Installing needs root and there is no sudo: run $0 as root." >&2
        exit 1
    fi
}

# quietly TITLE ...: runs a command; what it prints is shown only if it fails.
quietly() {
    title=$1
    shift
    echo "$title ..." >&2
    mkdir -p cache
    if ! "$@" </dev/null >cache/apt.log 2>&1; then
        cat cache/apt.log >&2
        echo "$title failed" >&2
        return 1
    fi
}

update_lists() {
    quietly "Reading package lists" as_root apt-get -q update
}

# install PACKAGE...
install() {
    quietly "Installing $*" as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qy -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
    # It takes away what conflicts.
    sed -n 's/^Removing \([^ ]*\) .*/apt removed \1, which conflicts with what was installed/p' cache/apt.log >&2
}

# candidate PACKAGE: the version apt would install; nothing if there is none.
candidate() {
    LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p' | grep -v '(none)' || true
}

# names GLOB: names of known packages that match a shell pattern.
names() {
    apt-cache pkgnames 2>/dev/null | while read -r name; do
        # shellcheck disable=SC2254 # a pattern is wanted
        case $name in $1) echo "$name" ;; esac
    done
}
