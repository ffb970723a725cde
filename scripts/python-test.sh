#!/usr/bin/env bash
# The Python package as its users get it: builds the wheel, installs it into a clean environment, tests it there.
#
#   scripts/python-test.sh           prints the wheel's size (must be below 10 MB) and the time of its import with NumPy's in
#                                    it (below 150 ms), then runs python/tests and the README's Python
#   scripts/python-test.sh ARG...    pytest's arguments
#
# The environment is target/python-venv; maturin, NumPy and what the tests read results with come from PyPI (100 MB).
set -euo pipefail
cd "$(dirname "$0")/.."

python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -q && apt-get install -qy python3-venv; }
VENV=$PWD/target/python-venv WHEELS=$PWD/target/python-wheels
rm -rf "$VENV" "$WHEELS"
python3 -m venv "$VENV"
PIP=("$VENV/bin/python" -m pip --quiet --disable-pip-version-check)
"${PIP[@]}" install 'maturin>=1.9.4,<2' 'numpy>=2.2.5' pytest pandas pyarrow ml_dtypes mypy
"$VENV/bin/maturin" build --quiet --release --locked --manifest-path python/Cargo.toml --interpreter "$VENV/bin/python" \
    --out "$WHEELS"
"${PIP[@]}" install --no-deps "$WHEELS"/critbeta-*.whl

bytes=$(stat -c %s "$WHEELS"/critbeta-*.whl)
echo "wheel: $((bytes / 1000)) kB"
[ "$bytes" -lt 10000000 ] || { echo "error: expected below 10 MB" >&2; exit 1; }
# From here, not from python/: there the package's sources would be found before what was installed.
"$VENV/bin/python" -B python/benches/import_time.py
"$VENV/bin/mypy" --strict --cache-dir "$VENV/mypy" -p critbeta
"$VENV/bin/stubtest" critbeta._core
exec "$VENV/bin/pytest" -q -c python/pyproject.toml -p no:cacheprovider "${@:-python/tests}"
