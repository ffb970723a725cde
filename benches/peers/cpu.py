"""The peers that critbeta is measured against on a CPU, in PyTorch and NumPy, in one run with it.

    python3 benches/peers/cpu.py --critbeta target/release/critbeta [--threads N] [--record STEM]
        [--only TEXT] [--small]

benches/peers/cpu.sh installs what it needs. For every case, critbeta draws the scores and keeps its process
(`bench --turns`); PyTorch and NumPy read the same bytes. Everything is checked against float64 first. Then
all take turns, forwards and backwards, with the same number of threads: a turn is one run that is not timed,
so that caches and threads are the runner's own, and one that is, behind a pause in which the threads of the
one before go to sleep. A ratio is the median over the rounds of the ratio of two times of one round, since
other work on a machine comes and goes in seconds. --record writes STEM.txt and STEM.json. Columns: plain is
our softmax at beta = 1, critical ours at each row's critical beta, torch PyTorch's softmax into a given
output; top-k is softmax at the critical beta of the 2,048 largest, wrong under a sink; sort is softmax at the
critical beta by a sort, the Rust one row-parallel by the standard library. --small proves the script on tiny
rows: its times mean nothing."""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import methods
import numpy
import rows
import torch
from check import check

ROUNDS, LEAST_ROUNDS = 15, 3
# Seconds: when a peer has been run often enough, how long a run is that no warm-up changes, and until threads
# sleep.
ENOUGH, LONG, PAUSE = 3.0, 0.2, 0.02
SHAPES = [(4096, 1 << 12), (256, 1 << 16), (16, 1 << 20), (1, 1 << 20)]
SMALL = [(3, 1000), (2, 4097)]
# Partial sums of a row: those of one AVX2 register, the least that any of the peers has.
LANES = 8
# Each column and the two times that it is the ratio of; from the third on, above 1 is in our favour.
RATIOS = [
    ("plain/copy_nt", "softmax", "copy_nt"),
    ("critical/plain", "critical_softmax", "softmax"),
    ("torch/plain", "torch_softmax", "softmax"),
    ("torch/critical", "torch_softmax", "critical_softmax"),
    ("torch top-k/critical", "torch_topk_softmax", "critical_softmax"),
    ("torch sort/critical", "torch_sort", "critical_softmax"),
    ("numpy sort/critical", "numpy_sort", "critical_softmax"),
    ("Rust sort/critical", "naive_sort", "critical_softmax"),
]


def cases(small):
    shapes, (r, n) = (SMALL, SMALL[-1]) if small else (SHAPES, SHAPES[1])
    yield from ((*shape, "f32", "gaussian") for shape in shapes)
    yield from ((r, n, dtype, "gaussian") for dtype in ("f16", "bf16"))
    yield from ((r, n, "f32", family) for family in rows.FAMILIES if family != "gaussian")
    yield (r, n, "f32", "log-grid shuffled")
    # Where a plain softmax of a row takes a microsecond and a half.
    r, n = shapes[0]
    yield from ((r, n, "f32", family) for family in ("needles", "sink", "student-t", "bf16"))


class Ours:
    """critbeta in a process of its own, which runs one method of a case for each line that it reads."""

    def __init__(self, args, words, file):
        command = [args.critbeta, "bench", *words, "--threads", str(args.threads), "--turns", file]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self.process.stdout.readline()
        if not ready.startswith("ready: "):
            raise ArithmeticError(f"critbeta: {ready.strip() or 'it ended'}")
        self.methods = ready.removeprefix("ready: ").split()

    def seconds(self, method, runs=1):
        """Of the last of `runs` runs, asked for at once: threads sleep while a process waits for a line."""
        print(*[method] * runs, sep="\n", file=self.process.stdin, flush=True)
        return [float(self.process.stdout.readline()) for _ in range(runs)][-1]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def numpy_softmax(x, beta, out):
    numpy.subtract(x, x.max(-1, keepdims=True), out=out)
    if beta is not None:
        out *= beta[:, None]
    numpy.exp(out, out=out)
    out /= out.sum(-1, keepdims=True)
    return torch.from_numpy(out)


def numpy_critical_beta(x):
    ordered = numpy.sort(x, axis=-1)[:, ::-1]
    gaps = ordered[:, :1] - ordered[:, 1:]
    with numpy.errstate(divide="ignore"):
        betas = numpy.log(numpy.arange(2, x.shape[1] + 1, dtype=x.dtype)) / gaps
    return numpy.minimum(betas.max(-1), numpy.float32(methods.LARGEST_BETA))


def peers(x, out):
    """By name, what makes probabilities once, and the betas that they were made at; None is beta = 1."""
    found = {
        "torch_copy": lambda: (out.copy_(x), None),
        "torch_softmax": lambda: (torch.softmax(x, -1, out=out), None),
        "torch_topk_softmax": lambda: methods.topk_softmax(x),
        "torch_sort": lambda: methods.sort_based(x),
    }
    if x.dtype == torch.float32:
        scores, target = x.numpy(), out.numpy()

        def numpy_sort():
            beta = numpy_critical_beta(scores)
            return numpy_softmax(scores, beta, target), torch.from_numpy(beta)

        found["numpy_softmax"] = lambda: (numpy_softmax(scores, None, target), None)
        found["numpy_sort"] = numpy_sort
    return found


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def words_of(case):
    count, n, dtype, family = map(str, case)
    family, *shuffled = family.split()
    words = ["--device", "cpu", "--rows", count, "--len", n, "--dtype", dtype, "--family", family]
    return words + [f"--{word}" for word in shuffled]


def measure(args, case, folder):
    count, n, dtype, family = case
    file = os.path.join(folder, "scores")
    ours = Ours(args, words_of(case), file)
    try:
        x = torch.frombuffer(bytearray(pathlib.Path(file).read_bytes()), dtype=rows.DTYPES[dtype]).reshape(
            count, n
        )
        return {"rows": count, "n": n, "dtype": dtype, "family": family, **turns(args, ours, x)}
    finally:
        ours.close()


def turns(args, ours, x):
    runs = {name: (lambda name=name: ours.seconds(name)) for name in ours.methods}
    out, ones = torch.empty_like(x), torch.ones(len(x))
    exact = methods.critical_beta(methods.sorted_gaps(x[:4]).double())
    shares, failed = {}, {}
    for name, peer in peers(x, out).items():
        try:
            out.zero_()
            probabilities, beta = peer()
            if name == "torch_copy":
                wrong = None if torch.equal(out, x) else "is no copy"
            else:
                wrong = check(x, probabilities, ones if beta is None else beta, LANES)
            if wrong:
                raise ArithmeticError(wrong)
            near = None if beta is None else (beta[:4] - exact).abs() <= exact * 2**-20
            if name == "torch_topk_softmax":
                shares["topk_exact_share"] = near.double().mean().item()
            elif near is not None and not near.all():
                raise ArithmeticError(f"critical betas {beta[:4].tolist()}, expected {exact.tolist()}")
            runs[name] = lambda peer=peer: timed(peer)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    times = {name: [] for name in runs}
    for turn in range(2 if args.small else ROUNDS):
        for name in list(runs) if turn % 2 else reversed(runs):
            taken = times[name]
            if len(taken) >= LEAST_ROUNDS and sum(taken) > ENOUGH:
                continue
            time.sleep(PAUSE)
            if not taken or taken[0] < LONG:
                runs[name]()
            taken.append(runs[name]())
    ratios = {
        name: statistics.median(x / y for x, y in zip(times[a], times[b]))
        for name, a, b in RATIOS
        if times.get(a) and times.get(b)
    }
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    return {"seconds": seconds, "ratios": ratios, "failed": failed, **shares}


def facts(args):
    cpu, memory = platform.processor() or platform.machine(), ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), cpu)
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "device": f"{cpu}, {os.cpu_count()} cores{memory}",
        "system": f"{platform.system()} {platform.release()}, {torch.backends.cpu.get_cpu_capability()}",
        "load": f"{os.getloadavg()[0]:.1f} running before the first case",
        "threads": args.threads,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "critbeta": subprocess.run(
            [args.critbeta, "--version"], capture_output=True, text=True
        ).stdout.strip(),
    }


def table(done):
    heads = [name for name, *_ in RATIOS]
    yield f"{'rows x n':>12} {'dtype':5} {'family':10} {'plain GB/s':>10} " + " ".join(heads)
    for case in done:
        moved = 2 * case["rows"] * case["n"] * (4 if case["dtype"] == "f32" else 2)
        cells = " ".join(
            f"{case['ratios'][head]:{len(head)}.2f}" if head in case["ratios"] else f"{'-':>{len(head)}}"
            for head in heads
        )
        shape = f"{case['rows']} x {case['n']}"
        rate = moved / case["seconds"]["softmax"] * 1e-9
        yield f"{shape:>12} {case['dtype']:5} {case['family']:10} {rate:10.1f} {cells}"
        yield from (f"  {name} failed: {why}" for name, why in case["failed"].items())


def record(stem, lines, found):
    with open(f"{stem}.txt", "w") as file:
        print("\n".join(lines), file=file)
    with open(f"{stem}.json", "w") as file:
        json.dump(found, file, indent=1)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--critbeta", required=True)
    args.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args.add_argument("--record")
    args.add_argument("--only", default="", help="cases whose line has this text, such as '256 x 65536 f32'")
    args.add_argument("--small", action="store_true")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    machine = facts(args)
    lines = [f"# {name}: {value}" for name, value in machine.items()]
    print("\n".join(lines), flush=True)
    done = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(args.small):
            if args.only not in "{} x {} {} {}".format(*case):
                continue
            done.append(measure(args, case, folder))
            rendered = list(table(done[-1:]))
            print("\n".join(rendered[1:] if len(done) > 1 else rendered), flush=True)
    if args.record:
        record(args.record, lines + list(table(done)), {**machine, "cases": done})
    failed = sorted({name for case in done for name in case["failed"]})
    print(f"{len(done)} cases, peers that failed: {', '.join(failed) or 'none'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
