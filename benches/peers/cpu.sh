#!/usr/bin/env bash
# critbeta beside PyTorch and NumPy on this CPU, in one run.
#
#   benches/peers/cpu.sh [--small] [--record STEM] [--threads N]     as benches/peers/cpu.py, which says how it measures
#
# PyTorch and NumPy come from PyPI into target/peers-venv. PyPI's PyTorch for Linux needs the CUDA libraries even on a CPU (without
# them it cannot be imported), so that is a download of some 3 GB and 5.4 GB on disk (PyTorch 2.15, 2026-11-25). A Python that has
# both already is taken as it is: PYTHON=/path/to/python benches/peers/cpu.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

VENV=target/peers-venv
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$VENV/bin/python
    [ -x "$PYTHON" ] || python3 -m venv "$VENV"
    "$PYTHON" -c 'import torch, numpy' 2>/dev/null ||
        "$PYTHON" -m pip install --quiet --disable-pip-version-check torch numpy
fi
cargo build --release --locked --bin critbeta
exec "$PYTHON" -B benches/peers/cpu.py --critbeta target/release/critbeta "$@"
