"""Times critbeta.softmax(out=) beside torch.softmax(out=) on float32. The two alternate; the table shows
medians of times, and of ratios within one turn.

    python python/benches/torch_softmax.py [ROWSxN ...] [--turns 15] [--device cuda]

It needs torch. Without shapes it takes 256x65536 and 16x1048576. Every result is compared with float64 before
it is timed. torch's OpenMP threads wait without spinning, unless OMP_WAIT_POLICY says otherwise. Spinning
threads take the cores of the next call: ours took 1.7 to 2 times as long (two cores, 2026-11-25:
docs/gotchas.md), and torch was no faster.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import critbeta  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("shapes", nargs="*", default=["256x65536", "16x1048576"])
parser.add_argument("--turns", type=int, default=15)
parser.add_argument("--device", default="cpu", help="cpu or cuda; there events time the whole call")
parser.add_argument("--families", nargs="*", default=["gaussian", "needles", "sink", "student-t"])
args = parser.parse_args()


def milliseconds(work):
    if args.device == "cpu":
        start = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def check(found, scores, beta):
    gaps = (scores.max() - scores).astype(np.float64)
    weights = np.exp(-beta * gaps)
    expected = weights / weights.sum()
    assert (np.abs(found - expected) <= expected * (4 + beta * gaps) * 2.0**-23 + 2.0**-150).all()


where = f"{torch.get_num_threads()} threads" if args.device == "cpu" else torch.cuda.get_device_name()
print(f"torch {torch.__version__}, {where}; medians of {args.turns} turns")
print("| rows x scores | family | torch ms | plain ms | critical ms | torch / plain | torch / critical |")
print("| --- | --- | --- | --- | --- | --- | --- |")
for shape in args.shapes:
    rows, n = map(int, shape.split("x"))
    for name in args.families:
        family = critbeta.Family.parse(name)
        scores = np.stack([family.draw(n, seed=row) for row in range(rows)])
        tensor = torch.from_numpy(scores).to(args.device)
        out = torch.zeros_like(tensor)
        runs = {
            "torch": lambda: torch.softmax(tensor, -1, out=out),
            "plain": lambda: critbeta.softmax(tensor, "identity", out=out),
            "critical": lambda: critbeta.softmax(tensor, "critical:ratio=1", out=out),
        }
        betas = {"critical": critbeta.critical_beta(scores)}
        for work in ["plain", "critical"]:
            runs[work]()
            for row in range(0, rows, max(1, rows // 8)):
                check(out[row].cpu().numpy(), scores[row], betas[work][row] if work in betas else 1.0)
        turns = [{work: milliseconds(run) for work, run in runs.items()} for _ in range(args.turns + 1)][1:]
        ms = {work: statistics.median(turn[work] for turn in turns) for work in runs}
        ratio = {work: statistics.median(turn["torch"] / turn[work] for turn in turns) for work in runs}
        times = " | ".join(f"{ms[work]:.1f}" for work in runs)
        ratios = f"{ratio['plain']:.2f} | {ratio['critical']:.2f}"
        print(f"| {rows} x {n:,} | {name} | {times} | {ratios} |", flush=True)
