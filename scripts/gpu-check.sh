#!/usr/bin/env bash
# The check on a GPU: everything that cannot be known without one, on a machine without Rust and without network.
#
#   scripts/gpu-check.sh build [DIR]     packs what is needed into DIR (target/gpu-check), under 60 MB; needs Rust, and takes
#                                        nvcc 13 from PyPI where there is none
#   DIR/gpu-check.sh run DIR             on the machine with the GPU, in one start and under 9 minutes. First correctness:
#                                        facts, doctor, parity of every variant, wrappers, the workspace, graph capture, 50
#                                        equal runs, the Python package on CUDA tensors. Then critbeta and its peers in turns
#                                        in one process, beside what `critbeta plan` predicts: decode attention, then rows;
#                                        last examples and compute-sanitizer. Reads no settings but nvidia-smi's queries,
#                                        changes none. Results: DIR/records
#   DIR/gpu-check.sh dry DIR             the same where there is no GPU: parts that need one are skipped by name, the others
#                                        run on the simulator and on tiny shapes, and prove the harness
#
# Every part has its own time-out; one that fails is reported, and the rest still runs. The last line is `N passed, M failed`
# (and `, K skipped` where parts were); the exit status is 0 when none failed. records/ holds at most 8 files.
set -uo pipefail

PACK_LIMIT_MB=60
# All parts together; a part that begins late has only what is left.
LIMIT_SECONDS=520
# For what follows the benches: ratios, examples, compute-sanitizer.
AFTER_SECONDS=120
# What runs on the GPU machine: test binaries, and examples that show the embedding.
TESTS="attention_device decode_device on_chip_device one_pass_device parity_device rules_device device_errors wrappers workspace"
EXAMPLES="03_cuda 04_streams 05_graph"
# Of the Python package: on a GPU, and without one.
PYTHON_TESTS="test_device.py test_device_pages.py test_device_decode.py test_device_decode_calls.py test_device_serve.py test_cuda.py"
PYTHON_DRY_TESTS="test_cuda_calls.py"
# The GPUs at hand, H100 and H200; others run the PTX.
ARCHS=${CRITBETA_CUDA_ARCHS:-sm_90,compute_80}

fail() { echo "error: $*" >&2; exit 1; }

# The Python package with the image in it, and the simulator for the dry run: one wheel for every Python from 3.10 on.
wheel() {
    local venv=$PWD/target/gpu-wheel-venv
    [ -x "$venv/bin/maturin" ] ||
        { python3 -m venv "$venv" && "$venv/bin/pip" install -q --disable-pip-version-check 'maturin>=1.9.4,<2'; } || return 1
    "$venv/bin/maturin" build --quiet --release --locked --features simt --manifest-path python/Cargo.toml --interpreter "$venv/bin/python" \
        --out "$1/python" || return 1
    local name
    for name in reference.py device.py paged.py served.py $PYTHON_TESTS $PYTHON_DRY_TESTS; do cp "python/tests/$name" "$1/python/" || return 1; done
}

build() {
    cd "$(dirname "$0")/.." || fail "no repository"
    local dir=${1:-target/gpu-check} home
    command -v cargo >/dev/null || fail "no cargo: build on a machine with Rust, run where the GPU is"
    home=$(scripts/cuda-compile.sh --tools) || fail "no nvcc"
    export CUDA_HOME=$home CRITBETA_REQUIRE_CUDA=1 CRITBETA_CUDA_ARCHS=$ARCHS CARGO_PROFILE_RELEASE_STRIP=symbols
    # Only what an earlier build made is removed.
    [ ! -e "$dir" ] || [ -e "$dir/BUILD" ] || fail "$dir exists and is none of mine: name a new folder"
    rm -rf "$dir"
    mkdir -p "$dir/bin" || fail "cannot write $dir"
    echo "unfinished" >"$dir/BUILD"
    local tests=() examples=()
    for name in $TESTS repeats; do tests+=(--test "$name"); done
    for name in $EXAMPLES; do examples+=(--example "$name"); done
    # Cargo says where it built them: test binaries have a hash in their names.
    {
        cargo test --release --locked --no-run --features simt "${tests[@]}" --message-format=json-render-diagnostics &&
            cargo build --release --locked --features simt --bin critbeta "${examples[@]}" --message-format=json-render-diagnostics
    } >"$dir/built.json" || fail "the build failed"
    python3 - "$dir" <<'PY' || fail "packing failed"
import json, pathlib, shutil, sys
folder = pathlib.Path(sys.argv[1])
for line in open(folder / "built.json"):
    made = json.loads(line)
    if made.get("executable"):
        kind, name = made["target"]["kind"][0], made["target"]["name"]
        shutil.copy(made["executable"], folder / "bin" / (name if kind == "bin" else f"{kind}-{name}"))
PY
    rm "$dir/built.json"
    [ -x "$dir/bin/critbeta" ] || fail "no critbeta was built"
    wheel "$dir" || fail "no wheel was built"
    ls -l "$dir/bin"
    # 14 binaries with one image in them all: a dictionary as long as two of them finds it (2026-12-01).
    python3 - "$dir" <<'PY' ||
import sys, tarfile
with tarfile.open(f"{sys.argv[1]}/bin.tar.xz", "w:xz", preset=9) as archive:
    archive.add(f"{sys.argv[1]}/bin", "bin")
PY
        fail "packing failed"
    rm -r "${dir:?}/bin"
    cp -r benches/peers scripts/gpu-check.sh "$dir/" || fail "packing failed"
    local changed
    changed=$(git status --porcelain -- build.rs Cargo.toml kernels src diagnose tests benches python)
    {
        echo "commit $(git rev-parse --short HEAD)${changed:+, with uncommitted changes}"
        echo "built $(date -u +%Y-%m-%d) by $(rustc --version), $("$home/bin/nvcc" --version | tail -1), for $ARCHS"
    } >"$dir/BUILD"
    local megabytes=$(($(du -sk "$dir" | cut -f1) / 1024))
    [ "$megabytes" -lt "$PACK_LIMIT_MB" ] || fail "$dir is of $megabytes MB, expected less than $PACK_LIMIT_MB"
    echo "$dir: $megabytes MB"
}

passed=0 failed=0 skipped=0
log() { tee -a "$records/log.txt"; }

# part NAME SECONDS COMMAND...
part() {
    local name=$1 seconds=$2 left=$((LIMIT_SECONDS - SECONDS)) began=$SECONDS code
    shift 2
    [ "$left" -lt "$seconds" ] && seconds=$left
    if [ "$seconds" -lt 3 ]; then
        echo "FAILED  $name: no time left of $LIMIT_SECONDS s" | log
        failed=$((failed + 1))
        return 1
    fi
    printf '\n== %s: %s\n' "$name" "$*" >>"$records/log.txt"
    timeout -k 5 "$seconds" "$@" >"$work/part.txt" 2>&1
    code=$?
    # A runaway log would not come back from the GPU machine.
    head -c 2000000 "$work/part.txt" >>"$records/log.txt"
    if [ "$code" = 0 ]; then
        echo "passed  $name ($((SECONDS - began)) s)" | log
        passed=$((passed + 1))
        return 0
    fi
    [ "$code" = 124 ] && echo "no end within $seconds s" >>"$work/part.txt"
    echo "FAILED  $name (status $code, $((SECONDS - began)) s): $(grep -v '^ *$' "$work/part.txt" | tail -1 | cut -c1-300)" | log
    failed=$((failed + 1))
    return 1
}

skip() {
    echo "skipped $1: $2" | log
    skipped=$((skipped + 1))
}

# A part of the GPU only.
gpu_part() { if [ -n "$gpu" ]; then part "$@"; else skip "$1" "no GPU"; fi; }

facts() {
    date -u +'%Y-%m-%d %H:%M UTC'
    cat BUILD
    uname -srm
    grep -m1 'model name' /proc/cpuinfo
    if [ -n "$gpu" ]; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,pcie.link.gen.current,power.limit,temperature.gpu --format=csv &&
            nvidia-smi --query-gpu=clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,clocks_event_reasons.active,utilization.gpu \
                --format=csv || return 1
        nvcc --version 2>/dev/null | tail -2
    else
        echo "no GPU: nothing below was measured on one"
    fi
    python3 -c 'import torch; print("PyTorch", torch.__version__)' 2>/dev/null || echo "no PyTorch"
    local peer
    for peer in triton flashinfer flash_attn_interface flash_attn; do
        python3 -c "import $peer; print('$peer', getattr($peer, '__version__', 'of no version'))" 2>/dev/null || echo "no $peer"
    done
}

# The one line that every CSV file begins with.
where() {
    [ -n "$gpu" ] || { echo "no GPU, dry run: times mean nothing"; return; }
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader | head -1 |
        sed 's/\([^,]*\), *\([^,]*\), *\([^,]*\), *\(.*\)/\1, driver \2, SM \3, memory \4/'
}

# With --device cuda:0 it fails unless the kernels load.
doctor() { bin/critbeta doctor ${gpu:+--device cuda:0}; }

# sanitizer_part NAME TOOL MORE...: memcheck or racecheck over small shapes. Some containers' runtimes refuse the tool its
# device.
sanitizer_part() {
    if [ -z "$gpu" ]; then
        skip "$1" "no GPU"
    elif ! command -v compute-sanitizer >/dev/null; then
        skip "$1" "no compute-sanitizer on this machine"
    elif timeout 30 compute-sanitizer --tool memcheck bin/critbeta doctor 2>&1 | grep -q "Device not supported"; then
        skip "$1" "compute-sanitizer refuses this device here"
    else
        part "$1" 50 compute-sanitizer --tool "$2" --error-exitcode 9 \
            bin/critbeta bench --device cuda:0 --small --rounds 1 "${@:3}"
    fi
}

# A filter that meets no test passes: this does not.
one_test() { "bin/test-$1" --exact "$2" --nocapture | tee "$work/one.txt" && grep -q "1 passed" "$work/one.txt"; }

# On the Python that is there, with its torch; nothing is fetched.
install_package() {
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" python/critbeta-*.whl
}

python_package() {
    local name tests=()
    for name in $python_tests; do tests+=("python/$name"); done
    PYTHONPATH=$work/site python3 -B -m pytest -q -p no:cacheprovider --rootdir python -rs --durations 5 "${tests[@]}"
}

# Decode attention and its peers, all in turns in one process.
decode_benches() {
    set -o pipefail
    local how=(--seconds 45)
    [ -n "$gpu" ] || how=(--dry-run)
    PYTHONPATH=$work/site python3 -B peers/gpu_decode.py --csv "$records/decode.csv" "${how[@]}" 2>&1 | tee "$records/decode.txt"
}

# The same shapes by the command, which checks every head's report too.
decode_of_command() {
    if [ -n "$gpu" ]; then
        bin/critbeta bench --decode --device cuda:0 --len 32768 --heads 32 --kv-heads 8
    else
        bin/critbeta bench --decode --device simt
    fi
}

# All in turns in one process. SECONDS_FOR_BENCHES: no case is begun later.
benches() {
    if [ -n "$gpu" ]; then
        PYTHONPATH=$work/site python3 -B peers/gpu.py --json "$work/gpu.json" --seconds "$SECONDS_FOR_BENCHES"
    else
        TRITON_INTERPRET=1 PYTHONPATH=$work/site python3 -B peers/gpu.py --dry-run --json "$work/gpu.json"
    fi
}

# Measured against the copy, the peers, the goals and the predictions.
ratios() { python3 -B peers/ratios.py "$work/gpu.json" "$records" >"$records/ratios.txt"; }

check() {
    cd "$1" || fail "no folder $1"
    [ -e bin ] || python3 -c 'import shutil; shutil.unpack_archive("bin.tar.xz")' ||
        fail "$1 holds nothing to run: scripts/gpu-check.sh build $1"
    records=$PWD/records work=$PWD/work
    export XDG_CACHE_HOME=$work/cache
    rm -rf "$records" "$work"
    mkdir -p "$records" "$work" || fail "cannot write $1"
    export -f facts doctor one_test install_package python_package decode_benches decode_of_command benches ratios
    export records work gpu python_tests=${gpu:+$PYTHON_TESTS}
    [ -n "$gpu" ] || python_tests=$PYTHON_DRY_TESTS
    export CRITBETA_REQUIRE_GPU=${gpu:+1}
    in_shell() { part "$1" "$2" bash -c "$3"; }

    in_shell facts 30 facts
    cp "$work/part.txt" "$records/facts.txt"
    in_shell doctor 30 doctor
    # The same binaries take the GPU with CRITBETA_REQUIRE_GPU=1 and the simulator without.
    for name in $TESTS; do part "$name" 120 "bin/test-$name"; done
    in_shell "50 equal runs" 60 "one_test repeats fifty_runs_give_the_same_bits"
    if [ -n "$gpu" ]; then
        in_shell "graph capture and replay" 30 "one_test repeats a_captured_launch_replays"
    else
        skip "graph capture and replay" "no GPU"
    fi
    in_shell "installing the Python package" 60 install_package
    if python3 -c 'import numpy, pytest, torch' 2>/dev/null; then
        in_shell "Python package" 110 python_package
    else
        skip "Python package" "no NumPy, pytest or PyTorch on this machine"
    fi
    if python3 -c 'import numpy, torch' 2>/dev/null; then
        in_shell "decode benches" 110 decode_benches
        in_shell "decode by the command" 30 decode_of_command
        # What the rest needs is left; the last case that is begun may take half a minute.
        export SECONDS_FOR_BENCHES=$((LIMIT_SECONDS - SECONDS - AFTER_SECONDS - 30))
        [ "$SECONDS_FOR_BENCHES" -gt 200 ] && SECONDS_FOR_BENCHES=200
        in_shell benches $((SECONDS_FOR_BENCHES + 30)) benches
        in_shell ratios 20 ratios
    else
        skip benches "no NumPy or PyTorch on this machine"
    fi
    # Behind the benches: what is most likely to run into its time-out goes last.
    for name in $EXAMPLES; do gpu_part "$name" 20 "bin/example-$name"; done
    sanitizer_part memcheck memcheck
    sanitizer_part "memcheck of decode" memcheck --decode
    sanitizer_part racecheck racecheck
    sanitizer_part "racecheck of decode" racecheck --decode
    for file in "$records"/*.csv; do
        [ -e "$file" ] && sed -i "1i# $(where)" "$file"
    done
    for file in decode ratios; do
        [ -e "$records/$file.txt" ] && cat "$records/$file.txt"
    done
    rm -rf "$work/cache"
    local summary="$passed passed, $failed failed"
    [ "$skipped" -gt 0 ] && summary="$summary, $skipped skipped"
    echo "$summary" | log
    [ "$failed" = 0 ]
}

case "${1:-}" in
build) build "${2:-}" ;;
run)
    gpu=1
    nvidia-smi --query-gpu=name --format=csv,noheader >/dev/null 2>&1 || fail "nvidia-smi shows no GPU; \`dry\` needs none"
    check "${2:-$(dirname "$0")}"
    ;;
dry)
    gpu=
    check "${2:-$(dirname "$0")}"
    ;;
*) sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
