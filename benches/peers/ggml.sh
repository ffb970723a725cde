#!/usr/bin/env bash
# llama.cpp's CPU kernels as a shared library for this CPU, for decode.py --ggml.
#
#   benches/peers/ggml.sh [DIR]        into DIR (target/ggml); PYTHON and JOBS are python3 and 1 unless set
#
# The sources are those in llama-cpp-python of PyPI: 77 MB, 220 MB unpacked. It takes a C++ compiler, and 71 s on one
# core (2026-11-29). GGML_NATIVE sets the CPU for ggml-cpu alone; ggml-base, which makes float32 of bfloat16, gets it
# by the flags: a bfloat16 cache takes 5 .. 19 % less time. OpenMP is ggml's default, and stays: ggml's own pool of
# threads takes as long or up to 8 % longer for 16,384 keys and more, and waits a time slice where a core is busy.
set -euo pipefail
cd "$(dirname "$0")/../.."

DIR=${1:-target/ggml}
PYTHON=${PYTHON:-python3}
PACKAGE=llama_cpp_python
VERSION=0.3.36
mkdir -p "$DIR"
[ -x "$DIR/tools/bin/cmake" ] || "$PYTHON" -m venv "$DIR/tools"
"$DIR/tools/bin/python" -m pip install --quiet --disable-pip-version-check cmake ninja
[ -d "$DIR/$PACKAGE-$VERSION" ] || {
    "$DIR/tools/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary "$PACKAGE" \
        --dest "$DIR" "$PACKAGE==$VERSION"
    tar -xzf "$DIR/$PACKAGE-$VERSION.tar.gz" -C "$DIR"
}
"$DIR/tools/bin/cmake" -S "$DIR/$PACKAGE-$VERSION/vendor/llama.cpp" -B "$DIR/build" -G Ninja \
    -DCMAKE_MAKE_PROGRAM="$(realpath "$DIR/tools/bin/ninja")" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_C_FLAGS=-march=native -DCMAKE_CXX_FLAGS=-march=native \
    -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
"$DIR/tools/bin/cmake" --build "$DIR/build" --target ggml-cpu --parallel "${JOBS:-1}"
find "$DIR/build" -name 'libggml-cpu.*'
