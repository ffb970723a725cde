#!/usr/bin/env bash
# The CUDA side of the Python package without a GPU: builds it with the crate's simulator in it, and holds it to its CPU side
# (python/tests/test_device.py). Behind scripts/python-test.sh, whose environment it uses; needs torch there, and a C++ compiler.
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
    python/tests/test_device.py
