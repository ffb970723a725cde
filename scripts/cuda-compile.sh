#!/usr/bin/env bash
# Compiles every kernel without a GPU, and judges what the compiler made of it.
#
#   scripts/cuda-compile.sh            compiles every variant for sm_80, sm_90, sm_100 and as PTX, and some again
#                                      by NVRTC without any header; prints a table of registers, stack, spills
#                                      and shared memory; fails if a variant spills or has a stack frame. The
#                                      last line is `N variants, 0 spills`: N rows of variants.def, on every
#                                      architecture that has them (clusters begin with sm_90)
#   scripts/cuda-compile.sh --quick    only sm_90 in place of the three, for every commit
#   scripts/cuda-compile.sh --gate     only sm_90: fails too if a score costs more issue slots than its copy
#                                      leaves (scripts/cuda/slots.py), or an element of a key or a value more
#                                      than the memory leaves (scripts/cuda/attention.py). The last line is
#                                      `N paths, M over budget`
#   scripts/cuda-compile.sh --gate --only attention    the same of the files whose names begin so
#   scripts/cuda-compile.sh --record   also writes benches/record/sass/DATE.txt
#   scripts/cuda-compile.sh --tools    only finds or installs the tools, and prints CUDA_HOME
#
# It takes nvcc 13 from $NVCC, $CUDA_HOME or PATH. If there is none, it installs the pinned set from PyPI into
# target/cuda-venv: without pins, pip mixes 13.0 with later parts that do not fit.
set -euo pipefail
cd "$(dirname "$0")/.."

NVCC_SET="nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
          nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88"
# The oldest disassembler that PyPI has; it reads what 13.0 wrote.
NVDISASM="nvidia-cuda-nvdisasm==13.2.86"

VENV=$PWD/target/cuda-venv
install() {
    [ -x "$VENV/bin/pip" ] || python3 -m venv "$VENV" || {
        echo "error: no python3 with venv to install $1. Debian, Ubuntu: apt-get install python3-venv" >&2
        exit 1
    }
    # shellcheck disable=SC2086
    "$VENV/bin/pip" install --quiet --disable-pip-version-check --no-deps $1 >&2
}
venv_home() { echo "$VENV"/lib/python3*/site-packages/nvidia/cu13; }
first() { for path in "$@"; do [ -e "$path" ] && echo "$path" && return; done; return 1; }

is_13() {
    local release
    release=$("$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
    [ "${release:-0}" -ge 13 ]
}
nvcc=
on_path=$(command -v nvcc || true)
for path in "${NVCC:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "$on_path" "$(venv_home)/bin/nvcc"; do
    [ -n "$path" ] && is_13 "$path" && nvcc=$path && break
done
if [ -z "$nvcc" ]; then
    install "$NVCC_SET"
    nvcc=$(venv_home)/bin/nvcc
    is_13 "$nvcc" || { echo "error: $nvcc, just installed, is not nvcc 13" >&2; exit 1; }
fi
home=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
find_nvrtc() { first {"$home"/lib,"$home"/lib64,"$(venv_home)"/lib}/libnvrtc.so.13; }
find_nvdisasm() { first "$home"/bin/nvdisasm "$(command -v nvdisasm)" "$(venv_home)"/bin/nvdisasm; }
[ "${1:-}" = --tools ] && echo "$home" && exit
nvrtc=$(find_nvrtc) || { install "${NVCC_SET##* }" && nvrtc=$(find_nvrtc); }
nvdisasm=$(find_nvdisasm) || { install "$NVDISASM" && nvdisasm=$(find_nvdisasm); }

python3 -B scripts/cuda/warp_test.py
exec python3 -B scripts/cuda/table.py --nvcc "$nvcc" --nvrtc "$nvrtc" --nvdisasm "$nvdisasm" "$@"
