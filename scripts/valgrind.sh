#!/usr/bin/env bash
# The lanes under valgrind, which knows AVX2 but not AVX-512: no read or write outside of what a test owns, and no
# decision on memory that was never written. About two minutes. NEON: the same tests run under qemu-aarch64.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v valgrind >/dev/null || {
    echo "error: no valgrind. apt-get install valgrind" >&2
    exit 1
}
cargo test --release --no-default-features --test lanes --no-run
lanes=$(cargo test --release --no-default-features --test lanes --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\/lanes-[^"]*\)".*/\1/p' | tail -n 1)
for set in avx2 portable; do
    printf '\n== %s\n' "$set"
    CRITBETA_LANES=$set valgrind --error-exitcode=9 --quiet "$lanes" --test-threads=1 \
        every_misalignment every_length rows_that_bins bits_of
done
