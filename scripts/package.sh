#!/usr/bin/env bash
# Checks what others get: how many crates the library compiles, and that both packages build from their own files.
#
#   scripts/package.sh      the last line is `package: ...`
#
# cargo package takes every tracked file that Cargo.toml includes; changes that are not committed are an error to it.
set -euo pipefail
cd "$(dirname "$0")/.."

# The lines of cargo tree, itself and repetitions included.
count() {
    local found
    found=$(cargo tree --locked -p critbeta -e normal --prefix none "${@:2}" | sort -u | wc -l)
    [ "$found" -le "$1" ] || { echo "error: critbeta ${*:2} compiles $found crates, expected $1 at most" >&2; exit 1; }
    echo "critbeta ${*:2}: $found lines of cargo tree, $1 at most"
}
count 25 --no-default-features
count 35 --no-default-features --features cuda
count 35

# That it builds is seen unoptimised too: 45 s, and not 87.
export CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=0
# cargo takes what it unpacked and built of critbeta's package at this path on another day for today's, in its own
# home and in the target (cargo 1.95, 2026-11-29: "no method named masked_below", which the package has).
rm -rf "${CARGO_HOME:-$HOME/.cargo}"/registry/src/-*/critbeta-[0-9]* target/packages
cargo package --locked --quiet --target-dir target/packages -p critbeta -p critbeta-diagnose "$@"
echo "package: critbeta and critbeta-diagnose build from their own files"
