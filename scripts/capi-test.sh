#!/usr/bin/env bash
# The C library and its TVM-FFI symbols, built, installed and used as others do it. The last line is pytest's summary.
#
#   scripts/capi-test.sh             everything
#   scripts/capi-test.sh ARG...      pytest's arguments
#
# target/capi-prefix holds what is installed, by the recipe of docs/embedding.md, and target/capi-venv pytest, NumPy and
# apache-tvm-ffi from PyPI. PyTorch is that of target/python-venv, which scripts/python-test.sh makes; without it the one
# test that needs it is skipped by name. CRITBETA_TORCH_PYTHON names another Python with PyTorch.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
for tool in valgrind gcc g++ pkg-config; do command -v "$tool" >/dev/null || missing+=("$tool"); done
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
[ ${#missing[@]} = 0 ] || { apt-get update -q && apt-get install -qy "${missing[@]}"; }

# Beside the packages of `cargo test`, and with the tests: so all features are the same, and one build serves both (two
# took 4 minutes of CPU more, 2026-11-30). simt: the simulator is the GPU of these tests.
together=(--locked -p critbeta -p critbeta-diagnose -p critbeta-capi --features critbeta-capi/simt)
tests=(--test header --test status)
cargo build "${together[@]}" --lib "${tests[@]}"
# The unit tests, and the header: cbindgen makes the same bytes.
cargo test "${together[@]}" "${tests[@]}"

PREFIX=$PWD/target/capi-prefix VENV=$PWD/target/capi-venv
rm -rf "$PREFIX"
recipe=$(sed -n '/^## C and TVM-FFI/,$p' docs/embedding.md | sed -n '/^```sh/,/^```/p' | grep -E '^(install|ln|sed) ')
PREFIX=$PREFIX bash -euc "${recipe//target\/release/target\/debug}"

if ! "$VENV/bin/python" -c 'import pytest, numpy, tvm_ffi' 2>/dev/null; then
    rm -rf "$VENV"
    python3 -m venv "$VENV"
    "$VENV/bin/python" -m pip --quiet --disable-pip-version-check install pytest 'numpy>=2' 'apache-tvm-ffi>=0.1.11,<0.2'
fi
if [ -z "${CRITBETA_TORCH_PYTHON:-}" ] && target/python-venv/bin/python -c 'import torch' 2>/dev/null; then
    CRITBETA_TORCH_PYTHON=$PWD/target/python-venv/bin/python
fi
[ -n "${CRITBETA_TORCH_PYTHON:-}" ] || echo "note: no target/python-venv, so the test with PyTorch is skipped"
export CRITBETA_PREFIX=$PREFIX CRITBETA_TORCH_PYTHON=${CRITBETA_TORCH_PYTHON:-}
exec "$VENV/bin/python" -B -m pytest -q -rs -p no:cacheprovider capi/tests "$@"
