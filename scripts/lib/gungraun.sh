#!/usr/bin/env bash
# Installs the runner of gungraun, the harness of benches/counts.rs, under target/tools unless that
# very version is there, and prints the path of its binary. Its version must be the library's.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/lib/common.sh

tools="${CARGO_TARGET_DIR:-$PWD/target}/tools"
version="$(awk '$0 == "name = \"gungraun-runner\"" { getline; gsub(/"/, "", $3); print $3 }' Cargo.lock)"
[ -n "$version" ] || die "Cargo.lock names no gungraun-runner"
runner="$tools/gungraun-runner-$version/bin/gungraun-runner"

if [ ! -x "$runner" ]; then
    say "installing gungraun-runner $version into $tools"
    # It only starts valgrind and reads what that writes: the quicker build is quick enough.
    CARGO_TARGET_DIR="$tools/build" CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install --quiet --locked --debug --no-track --root "${runner%/bin/*}" \
        --version "$version" gungraun-runner >&2
    rm -rf "$tools/build"
fi
[ -x "$runner" ] || die "gungraun-runner is not where it should be: $runner"
printf '%s\n' "$runner"
