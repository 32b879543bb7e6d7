# shellcheck shell=bash
# What the scripts share; to be sourced. Sets nothing but functions, and PATH.

PATH="$PATH:/usr/sbin:/sbin"
# Rust comes from rustup, which puts it here when no shell has been started since.
if [ -x "$HOME/.cargo/bin/cargo" ]; then PATH="$HOME/.cargo/bin:$PATH"; fi
export PATH

say() { printf '== %s\n' "$*" >&2; }
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Ends the script unless it can make network namespaces.
need_root() {
    [ "$(uname -s)" = Linux ] || die "this needs Linux: it makes network namespaces"
    [ "$(id -u)" = 0 ] || die "this makes network namespaces: run it as root (sudo $0)"
}

# Installs the packages of programs that are not here; each argument is PROGRAM:PACKAGE, where
# PROGRAM may also be the path of a file, without its first slash. No service that comes with a
# package is started.
need() {
    local pair missing=()
    for pair in "$@"; do
        if [ -e "/${pair%%:*}" ] || command -v "${pair%%:*}" >/dev/null; then continue; fi
        missing+=("${pair##*:}")
    done
    if [ ${#missing[@]} = 0 ]; then return; fi
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    say "installing ${missing[*]}"
    install_packages "${missing[@]}"
}

install_packages() {
    local policy=/usr/sbin/policy-rc.d status=0 ours=
    # 101 is how policy-rc.d says that a service is not to be started.
    if [ ! -e "$policy" ]; then
        ours=1
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    if [ -z "${packages_updated:-}" ]; then
        apt-get update -qq || status=$?
        packages_updated=1
    fi
    if [ "$status" = 0 ]; then
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null || status=$?
    fi
    if [ -n "$ours" ]; then rm -f "$policy"; fi
    [ "$status" = 0 ] || die "cannot install $*"
}

need_rust() {
    command -v cargo >/dev/null || die "cargo is missing: install Rust with rustup, then try again"
    need cc:gcc ld:binutils make:make usr/include/stdlib.h:libc6-dev
}
