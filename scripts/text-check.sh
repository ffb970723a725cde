#!/usr/bin/env bash
# The text that readers see: how long lines are, and whether what they point to is there. Tracked files lie in folders
# of the project.
#
#   scripts/text-check.sh [md|code]      both, unless one is named
#
# md: README has at most 130 lines of at most 100 columns; lines of any other .md have at most 110, outside tables and
# code blocks. Relative links lead to tracked files, and so do paths (with a / and an extension) in backticks and code
# blocks, which may begin in any folder: `cpu/softmax.rs` is found below src/.
# code: lines of .rs, .py, .cu and .cuh files have at most 110 columns, strings and links left out.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 - "$@" <<'PY'
import os, re, subprocess, sys

tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout.split("\0")
tracked = [path for path in tracked if path and os.path.isfile(path)]
# Every file under its full path, and from any folder above it on.
endings = {path.split("/", depth)[-1] for path in tracked for depth in range(path.count("/") + 1)}
places = set(tracked) | {os.path.dirname(path[: at + 1]) for path in tracked for at, c in enumerate(path) if c == "/"}
wrong = []
# What a trial run leaves behind is not tracked by accident.
TOP = set("benches candle capi diagnose docs examples fuzz gguf kernels python scripts src tests .ci".split())
for path in tracked:
    folder = path.split("/")[0]
    if "/" in path and folder not in TOP:
        wrong.append(f"{path}: no part of the project is in {folder}/, expected {' '.join(sorted(TOP))}")


def lines_of(path):
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


def check_width(path, number, line, most):
    if len(line) > most:
        wrong.append(f"{path}:{number}: {len(line)} columns, expected at most {most}")


def check_md(path):
    is_readme, in_code, lines = path == "README.md", False, lines_of(path)
    if is_readme and len(lines) > 130:
        wrong.append(f"{path}: {len(lines)} lines, expected at most 130")
    for number, line in enumerate(lines, 1):
        fence = line.lstrip().startswith("```")
        in_code ^= fence
        if is_readme or not (in_code or fence or line.startswith("|")):
            check_width(path, number, line, 100 if is_readme else 110)
        # In a code block every word may be a path.
        quotes = [] if fence else [line] if in_code else re.findall(r"`([^`]+)`", line)
        for word in (word for quoted in quotes for word in quoted.split()):
            if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/[\w.-]*\.[A-Za-z]\w*", word) and word not in endings:
                if not word.startswith(("target/", "DIR/")):
                    wrong.append(f"{path}:{number}: there is no file {word}")
        for target in [] if in_code or fence else re.findall(r"\]\(([^)\s]+)\)", line):
            target = target.split("#")[0]
            if target and "://" not in target:
                place = os.path.normpath(os.path.join(os.path.dirname(path), target))
                if place not in places:
                    wrong.append(f"{path}:{number}: the link {target} leads nowhere")


asked = sys.argv[1:] or ["md", "code"]
for path in tracked:
    if path.endswith(".md") and "md" in asked:
        check_md(path)
    if path.endswith((".rs", ".py", ".cu", ".cuh")) and "code" in asked:
        for number, line in enumerate(lines_of(path), 1):
            # A long string stays in one piece, so that it can be found; links of the documentation are not shown.
            check_width(path, number, re.sub(r'r#"[^#]*"#|"(?:[^"\\]|\\.)*"|\]\([\w:]+\)', '""', line), 110)
print(*wrong, f"{len(wrong)} wrong places in the text", sep="\n")
sys.exit(bool(wrong))
PY
