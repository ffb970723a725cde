#!/usr/bin/env bash
# Tests the report in a real browser: Debian's chromium, headless, over the DevTools protocol. The console must stay
# empty, and no request may leave. Cells are chosen by click and by key, and everything works without JavaScript. It
# checks the contrast of every text, overlaps, layouts at 390, 1024 and 1920 px in light and dark, and the PDF. The
# pages are of the example, of hostile names, of 30 x 32 heads, and of rows that say nothing. It takes under a minute
# once critbeta is built.
#
#   scripts/browser-test.sh [--keep FOLDER]    FOLDER: pages, PDFs and screenshots stay there, to be looked at
#
# The last line is `N passed, M failed`.
set -euo pipefail
cd "$(dirname "$0")/.."
chromium=$(command -v chromium || command -v chromium-browser || true)
if [ -z "$chromium" ] || ! command -v pdftotext >/dev/null; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || {
        echo "error: no chromium or no pdftotext. Debian: apt-get install chromium poppler-utils" >&2
        exit 1
    }
    apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium poppler-utils fonts-dejavu-core >&2
    chromium=$(command -v chromium)
fi
# As `cargo test` builds it: one build serves both.
cargo test --locked --no-run
critbeta=$(cargo test --locked --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\/critbeta\)".*/\1/p' | tail -n 1)
exec python3 -B diagnose/tests/browser/run.py --critbeta "$critbeta" --chromium "$chromium" "$@"
