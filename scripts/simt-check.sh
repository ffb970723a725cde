#!/usr/bin/env bash
# Looks for faults of the simulator itself: runs tests of the kernels with sanitizers of gcc in the simulator.
# `cargo test` runs the same tests without one. Needs gcc with its libasan and libubsan (CXX, or c++).
# usage: scripts/simt-check.sh [SANITIZER,...]      address,undefined if none is given
set -euo pipefail
cd "$(dirname "$0")/.."
"${CXX:-c++}" --version >/dev/null || { echo "no C++ compiler: set CXX" >&2; exit 2; }
export CRITBETA_SIMT_SANITIZE=${1:-address,undefined}
run=(cargo test --locked --no-default-features)
"${run[@]}" --test simt --test wrappers
# Two tests of parity_device reach every scope and dtype, in 30 s of CPU with `address` (2026-11-29).
few=(rows_have_their_own_lengths memory_is_read_once_and_written_once)
said=$("${run[@]}" --test parity_device -- --exact "${few[@]}") && grep " ${#few[@]} passed" <<<"$said" ||
    { echo "$said"; exit 1; }
