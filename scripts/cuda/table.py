"""Compiles the kernels for every architecture, prints what each variant costs, and fails on a spill or a stack frame.

scripts/cuda-compile.sh runs this with the tools it found.
"""

import argparse
import concurrent.futures
import datetime
import pathlib
import re
import subprocess
import sys

import loops
import nvrtc

ARCHS = ["sm_80", "sm_90", "sm_100"]
PTX = "compute_80"
NVRTC_ARCHS = ["compute_80", "sm_90"]
FLAGS = ["-O3", "-std=c++17", "-lineinfo"]
COLUMNS = ["registers", "stack", "spill stores", "spill loads", "static shared"]


def variants(kernels):
    """Symbol and scope of each row of variants.def, in its order."""
    text = (kernels / "variants.def").read_text()
    rows = re.findall(r"^([A-Z_]+)\((\w+), (\w+), (\d+), (\d+)\)$", text, re.MULTILINE)
    if not rows:
        sys.exit(f"error: no FAMILY(dtype, scope, threads, ctas) in {kernels / 'variants.def'}")
    return {f"{family.lower()}_{dtype}_{scope}{threads}x{ctas}": scope for family, dtype, scope, threads, ctas in rows}


def expected(table, arch):
    number = int(arch.split("_")[1])
    return {symbol for symbol, scope in table.items() if scope != "cluster" or number >= 90}


def compile_one(nvcc, source, arch, out):
    """What the compiler said; the image stands in `out`, and its name says of what."""
    kind = "-ptx" if arch.startswith("compute") else "-cubin"
    image = out / f"{source.stem}.{arch}{'.ptx' if kind == '-ptx' else '.cubin'}"
    command = [nvcc, kind, f"-arch={arch}", *FLAGS, "-Xptxas", "-v,-warn-spills", str(source), "-o", str(image)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return image, done.stderr


def costs(said):
    """Per function: its COLUMNS, as `ptxas -v` tells them."""
    found, name = {}, None
    for line in said.splitlines():
        if match := re.search(r"Function properties for (\S+)", line):
            name = match[1]
            found[name] = dict.fromkeys(COLUMNS, 0)
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found[name].update(zip(COLUMNS[1:4], map(int, match.groups())))
        elif match := re.search(r"Used (\d+) registers", line):
            found[name]["registers"] = int(match[1])
            shared = re.search(r"(\d+) bytes smem", line)
            found[name]["static shared"] = int(shared[1]) if shared else 0
    return found


def differ(what, wanted, got):
    """Complaints where an image does not hold exactly the symbols of variants.def."""
    complaints = []
    for told, symbols in [("not there", wanted - got), ("not in variants.def", got - wanted)]:
        if symbols:
            complaints.append(f"{what}: {len(symbols)} kernels {told}: {', '.join(sorted(symbols))}")
    return complaints


def main():
    args = argparse.ArgumentParser()
    for tool in ["nvcc", "nvrtc", "nvdisasm"]:
        args.add_argument(f"--{tool}", required=True)
    args.add_argument("--kernels", type=pathlib.Path, default=pathlib.Path("kernels"))
    args.add_argument("--out", type=pathlib.Path, default=pathlib.Path("target/cuda-compile"))
    args.add_argument("--record", action="store_true")
    args = args.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table = variants(args.kernels)
    sources = sorted(args.kernels.glob("*.cu"))
    complaints, rows, images, ptx = [], {}, {}, set()

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = {
            (source, arch): pool.submit(compile_one, args.nvcc, source, arch, args.out)
            for arch in [*ARCHS, PTX]
            for source in sources
        }
        for (source, arch), job in jobs.items():
            image, said = job.result()
            if arch == PTX:
                ptx |= set(re.findall(r"\.entry (\w+)\(", image.read_text()))
            else:
                images[source.stem, arch] = image
                rows.update({(name, arch): cost for name, cost in costs(said).items()})

    width = max(map(len, table), default=0)
    print(f"{len(table)} variants; cluster variants begin with sm_90")
    print(f"{'variant':{width}}  {'arch':6}  " + "  ".join(f"{column:>13}" for column in COLUMNS))
    for arch in ARCHS:
        names = {name for name, of in rows if of == arch}
        # Functions that a kernel calls are judged with it; only kernels must be in the table.
        callees = {name for name in names if name not in table and rows[name, arch]["registers"] == 0}
        complaints += differ(arch, expected(table, arch), names - callees)
        for name in [*(s for s in table if s in names), *sorted(names - table.keys())]:
            cost = rows[name, arch]
            print(f"{name:{width}}  {arch:6}  " + "  ".join(f"{cost[column]:13}" for column in COLUMNS))
            if cost["stack"] or cost["spill stores"] or cost["spill loads"]:
                complaints.append(
                    f"{name} on {arch}: {cost['stack']} bytes of stack, {cost['spill stores']} of spill stores, "
                    f"{cost['spill loads']} of spill loads; expected none"
                )
    complaints += differ(PTX, expected(table, PTX), ptx)
    print(f"PTX {PTX}: {len(ptx)} kernels")

    compiler = nvrtc.Nvrtc(args.nvrtc)
    for arch in NVRTC_ARCHS:
        got = set()
        for source in sources:
            image = compiler.compile(nvrtc.expand(source), source.name, arch)
            got |= {symbol for symbol in table if symbol.encode() + b"\0" in image or f" {symbol}(".encode() in image}
        complaints += differ(f"NVRTC {arch}", expected(table, arch), got)
        print(f"NVRTC {compiler.version()} {arch}, no headers: {len(got)} kernels")

    told = loops.report(args.nvdisasm, images, args.kernels)
    print(told)
    if complaints:
        sys.exit("\n".join(f"error: {c}" for c in complaints))
    if args.record:
        write_record(args, told, rows, table)
    print(f"{len(table)} variants, 0 spills")


def write_record(args, told, rows, table):
    day = datetime.date.today().isoformat()
    path = pathlib.Path("benches/record/sass") / f"{day}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain", str(args.kernels)], capture_output=True, text=True).stdout
    release = subprocess.run([args.nvcc, "--version"], capture_output=True, text=True).stdout.splitlines()[-1]
    lines = [
        f"# scripts/cuda-compile.sh --record, {day}, commit {commit}{' and uncommitted kernels' if changed else ''}",
        f"# {release}; flags {' '.join(FLAGS)}",
        "",
        told,
        "",
        "Registers, and bytes of static shared memory; no variant spills or has a stack frame",
        f"{'variant':40} " + " ".join(f"{arch:>14}" for arch in ARCHS),
    ]
    for symbol in table:
        cells = [rows.get((symbol, arch)) for arch in ARCHS]
        told_cells = [f"{c['registers']} ({c['static shared']})" if c else "-" for c in cells]
        lines.append(f"{symbol:40} " + " ".join(f"{cell:>14}" for cell in told_cells))
    path.write_text("\n".join(lines) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
