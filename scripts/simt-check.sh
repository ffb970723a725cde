#!/usr/bin/env bash
# Looks for faults of the simulator itself: runs tests of the kernels with a sanitizer of gcc in the simulator.
# `cargo test` runs the same tests without one. Needs gcc with its libasan and libubsan (CXX, or c++).
# usage: scripts/simt-check.sh [address|undefined ...]
set -euo pipefail
cd "$(dirname "$0")/.."
# Two tests of parity_device reach every scope and dtype, in 30 s of CPU with `address` (2026-11-29).
few=(rows_have_their_own_lengths memory_is_read_once_and_written_once)
"${CXX:-c++}" --version >/dev/null || { echo "no C++ compiler: set CXX" >&2; exit 2; }
kinds=("$@")
[ ${#kinds[@]} -gt 0 ] || kinds=(address undefined)
for kind in "${kinds[@]}"; do
    printf '== %s\n' "$kind"
    export CRITBETA_SIMT_SANITIZE=$kind
    run=(cargo test --locked --no-default-features)
    "${run[@]}" --test simt --test wrappers
    said=$("${run[@]}" --test parity_device -- --exact "${few[@]}") && grep " ${#few[@]} passed" <<<"$said" ||
        { echo "$said"; exit 1; }
done
