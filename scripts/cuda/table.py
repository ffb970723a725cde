"""Compiles the kernels for every architecture, prints what each variant costs, and fails if one spills or has
a stack frame.

scripts/cuda-compile.sh runs this with the tools it found.
"""

import argparse
import concurrent.futures
import datetime
import pathlib
import re
import subprocess
import sys

import attention
import nvrtc
import slots

ARCHS = ["sm_80", "sm_90", "sm_100"]
# To PTX only: the assembler is the one of nvcc. A few kernels of all scopes and dtypes show that the text
# needs no header.
NVRTC_ARCHS = ["compute_80", "compute_90"]
NVRTC_ROWS = ["critical_softmax_f32_cluster256x1", "critical_softmax_f16_block256x1"]
NVRTC_ROWS += ["gap_profile_bf16_warp128x1", "gap_profile_f32_split512x1", "wrappers_f32_block128x1"]
NVRTC_ROWS += ["attention_scores_f32_block128x1", "attention_scores_bf16_block128x1"]
NVRTC_ROWS += ["attention_values_f16_block256x1", "attention_one_pass_bf16_block256x1"]
NVRTC_ROWS += ["attention_on_chip_bf16_cluster256x1", "attention_betas_f32_cluster256x1"]
FLAGS = ["-O3", "-std=c++17", "-lineinfo"]
COLUMNS = ["registers", "stack", "spill stores", "spill loads", "static shared"]


def variants(kernels):
    """Symbol and scope of each row of variants.def, in its order."""
    text = (kernels / "variants.def").read_text()
    rows = list(nvrtc.ROW.finditer(text))
    if not rows:
        sys.exit(f"error: no FAMILY(dtype, scope, threads, ctas) in {kernels / 'variants.def'}")
    return {nvrtc.symbol(row): row[3] for row in rows}


def expected(table, arch):
    number = int(arch.split("_")[1])
    return {symbol for symbol, scope in table.items() if scope != "cluster" or number >= 90}


def run(command):
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stderr


def compile_one(nvcc, source, arch, out):
    """PTX, its cubin, and what the assembler says. In two steps, so that the PTX of sm_80 is there too."""
    ptx, cubin = (out / f"{source.stem}.{arch}.{kind}" for kind in ["ptx", "cubin"])
    virtual = arch.replace("sm", "compute")
    run([nvcc, "-ptx", f"-arch={virtual}", *FLAGS, str(source), "-o", str(ptx)])
    assemble = [nvcc, "-cubin", f"-arch={arch}", "-O3", "-lineinfo", "-Xptxas", "-v,-warn-spills"]
    return ptx, cubin, run([*assemble, str(ptx), "-o", str(cubin)])


def costs(said):
    """Per function: its COLUMNS, as `ptxas -v` tells them."""
    found, name = {}, None
    for line in said.splitlines():
        if match := re.search(r"Function properties for (\S+)", line):
            name = match[1]
            found[name] = dict.fromkeys(COLUMNS, 0)
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) \D* stores, (\d+) \D* loads", line):
            found[name].update(zip(COLUMNS[1:4], map(int, match.groups())))
        elif match := re.search(r"Used (\d+) registers", line):
            found[name]["registers"] = int(match[1])
            shared = re.search(r"(\d+) bytes smem", line)
            found[name]["static shared"] = int(shared[1]) if shared else 0
    return found


def plain(name):
    """The last word of a mangled name: what a kernel calls."""
    words = re.findall(r"\d([a-z_]+[a-z])(?=E)", name) if name.startswith("_Z") else []
    return f"  calls {words[-1]}" if words else name


def differ(what, wanted, got):
    """Complaints where an image does not hold exactly the symbols of variants.def."""
    complaints = []
    for problem, symbols in [("not there", wanted - got), ("not in variants.def", got - wanted)]:
        if symbols:
            complaints.append(f"{what}: {len(symbols)} kernels {problem}: {', '.join(sorted(symbols))}")
    return complaints


def main():
    args = argparse.ArgumentParser()
    for tool in ["nvcc", "nvrtc", "nvdisasm"]:
        args.add_argument(f"--{tool}", required=True)
    args.add_argument("--kernels", type=pathlib.Path, default=pathlib.Path("kernels"))
    args.add_argument("--out", type=pathlib.Path, default=pathlib.Path("target/cuda-compile"))
    args.add_argument("--gate", action="store_true")
    args.add_argument("--quick", action="store_true")
    args.add_argument("--record", action="store_true")
    args.add_argument("--only", default="", help="the files of kernels whose names begin so")
    args = args.parse_args()
    if args.record and args.only:
        sys.exit("error: a record has all kernels, expected no --only beside --record")
    args.out.mkdir(parents=True, exist_ok=True)
    archs = [slots.ARCH] if args.gate or args.quick else ARCHS
    nvrtc_archs = [] if args.gate else NVRTC_ARCHS
    table = {s: scope for s, scope in variants(args.kernels).items() if s.startswith(args.only)}
    sources = sorted(path for path in args.kernels.rglob("*.cu") if path.parent.name != "simt")
    sources = [path for path in sources if path.name.startswith(args.only)]
    if not sources:
        sys.exit(f"error: no file of {args.kernels} begins with {args.only!r}")
    complaints, rows, images, ptx = [], {}, {}, set()
    compiler = nvrtc.Nvrtc(args.nvrtc)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        offline, online = {}, {}
        for s in sources:
            for a in archs:
                offline[s, a] = pool.submit(compile_one, args.nvcc, s, a, args.out)
            for a in nvrtc_archs:
                text = nvrtc.only(nvrtc.expand(s), NVRTC_ROWS)
                online[s, a] = pool.submit(compiler.compile, text, s.name, a)
        for (source, arch), job in offline.items():
            text, images[source.stem, arch], said = job.result()
            rows.update({(name, arch): cost for name, cost in costs(said).items()})
            if arch == archs[0]:
                ptx |= set(re.findall(r"\.entry (\w+)\(", text.read_text()))

    width = max(map(len, table), default=0)
    print(f"{len(table)} variants; cluster variants begin with sm_90")
    print(f"{'variant':{width}}  {'arch':6}  " + "  ".join(f"{column:>13}" for column in COLUMNS))
    for arch in archs:
        names = {name for name, of in rows if of == arch}
        # Functions that a kernel calls are judged with it; only kernels must be in the table.
        callees = {name for name in names if name not in table and rows[name, arch]["registers"] == 0}
        complaints += differ(arch, expected(table, arch), names - callees)
        bad = {}
        for name in [*(s for s in table if s in names), *sorted(names - table.keys())]:
            cost = rows[name, arch]
            cells = "  ".join(f"{cost[column]:13}" for column in COLUMNS)
            print(f"{plain(name):{width}}  {arch:6}  {cells}")
            if spilled := cost["stack"] + cost["spill stores"] + cost["spill loads"]:
                bad[name] = spilled
        if bad:
            worst = max(bad, key=bad.get)
            bytes_of = ", ".join(f"{column} {rows[worst, arch][column]}" for column in COLUMNS[1:4])
            names = ", ".join(map(plain, bad))
            complaints.append(
                f"{arch}: {len(bad)} functions spill or have a stack frame, bytes up to {bytes_of}: {names}"
            )
    complaints += differ("PTX", expected(table, archs[0]), ptx)
    print(f"PTX of {archs[0]}: {len(ptx)} kernels")
    for arch in nvrtc_archs:
        made = [online[source, arch].result() for source in sources]
        entry = {s: (s.encode() + b"\0", f" {s}(".encode()) for s in table}
        got = {s for s, marks in entry.items() if any(mark in image for mark in marks for image in made)}
        complaints += differ(f"NVRTC {arch}", expected(table, arch) & set(NVRTC_ROWS), got)
        print(f"NVRTC {compiler.version()} {arch}, no headers: {len(got)} kernels")

    lines, paths, over = slots.report(args.nvdisasm, images, table)
    further = attention.report(args.nvdisasm, images, table, args.kernels, slots.cost)
    lines, paths, over = [*lines, "", *further[0]], paths + further[1], over + further[2]
    print("\n".join(lines))
    if complaints:
        sys.exit("\n".join(f"error: {c}" for c in complaints))
    if args.record:
        write_record(args, lines, rows, table)
    print(f"{len(table)} variants, 0 spills")
    if args.gate:
        print(f"{paths} paths, {over} over budget")
        sys.exit(over > 0)


def output_of(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write_record(args, slots_of_paths, rows, table):
    day = datetime.date.today().isoformat()
    path = pathlib.Path("benches/record/sass") / f"{day}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    commit = output_of(["git", "rev-parse", "--short", "HEAD"])
    if output_of(["git", "status", "--porcelain", str(args.kernels)]):
        commit += " and uncommitted kernels"
    release = output_of([args.nvcc, "--version"]).splitlines()[-1]
    lines = [
        f"# scripts/cuda-compile.sh --record, {day}, commit {commit}",
        f"# {release}; flags {' '.join(FLAGS)}",
        "",
        *slots_of_paths,
        "",
        "Registers, and bytes of static shared memory; no variant spills or has a stack frame",
        f"{'variant':40} " + " ".join(f"{arch:>14}" for arch in ARCHS),
    ]
    for symbol in table:
        cells = [rows.get((symbol, arch)) for arch in ARCHS]
        shown = [f"{c['registers']} ({c['static shared']})" if c else "-" for c in cells]
        lines.append(f"{symbol:40} " + " ".join(f"{cell:>14}" for cell in shown))
    path.write_text("\n".join(lines) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
