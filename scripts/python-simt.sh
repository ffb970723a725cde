#!/usr/bin/env bash
# Tests the CUDA side of the Python package without a GPU. It builds the package with the simulator and compares it
# with the CPU side (python/tests/test_device*.py). It uses the environment of
# scripts/python-test.sh, which runs before it, and needs a C++ compiler.
#
#   scripts/python-simt.sh           in target/python-simt
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=$PWD/target/python-venv OUT=$PWD/target/python-simt
[ -x "$VENV/bin/maturin" ] || { echo "error: no $VENV: run scripts/python-test.sh first" >&2; exit 1; }
rm -rf "$OUT"
"$VENV/bin/maturin" build --quiet --release --locked --features simt --manifest-path python/Cargo.toml \
    --interpreter "$VENV/bin/python" --out "$OUT"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$OUT/site" "$OUT"/critbeta-*.whl
PYTHONPATH=$OUT/site CRITBETA_REQUIRE_SIMT=1 exec "$VENV/bin/pytest" -q -c python/pyproject.toml -p no:cacheprovider \
    python/tests/test_device*.py
