#!/usr/bin/env bash
# What is too heavy for every commit, before a release and after a change of what it tests. It stops at the first
# step that fails.
#
#   scripts/release-check.sh         the last line is `release-check: ...`
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; "$@"; }

# Both packages from their own files, as others get them.
step scripts/package.sh
# Kernels for every architecture, and as PTX.
step scripts/cuda-compile.sh
# vLLM takes the wheel and the trained model of the Python tests.
[ -d target/python-wheels ] || step scripts/python-test.sh
step scripts/vllm-test.sh
step scripts/gguf-test.sh
step scripts/candle-test.sh
step scripts/valgrind.sh
echo "release-check: all steps passed"
