"""The peers that critbeta is measured against on a GPU, in PyTorch and Triton.

    python3 benches/peers/gpu.py CASES.json --json PEERS.json [--seconds 200]
    python3 benches/peers/gpu.py --cpu-dry-run

CASES.json is what `critbeta bench --json` wrote: the same shapes, dtypes and families. All peers of a case
are checked against float64 first and then timed in one process, in alternating order, with CUDA events, the
L2 cache overwritten before each; the median counts. A peer that fails is named with what it said, and the
others go on. --cpu-dry-run proves the script on tiny rows without a GPU: its times mean nothing. With
TRITON_INTERPRET=1 it covers the Triton peer too."""

import argparse
import json
import statistics
import sys
import time

import methods
import rows
import torch
from check import check

ROUNDS = 9
FLUSH_BYTES = 256 << 20
# A sort of more than this many scores takes longer than all else together.
SORT_LIMIT = 1 << 27
DRY_CASES = [
    {"rows": r, "n": n, "dtype": dtype, "family": family}
    for family in rows.FAMILIES
    for r, n, dtype in [
        (3, 1, "f32"),
        (4, 300, "f32"),
        (2, 4097, "f32"),
        (2, 4097, "bf16"),
        (3, 2500, "f16"),
        (1, 20001, "f32"),
    ]
]


class GpuClock:
    """Seconds on the device. The overwriting also keeps it busy while the host queues the launches to be
    timed."""

    def __init__(self):
        self.scratch = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def seconds(self, run):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for value in (1, 2):
            self.scratch.fill_(value)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


class HostClock:
    def seconds(self, run):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def measure(case, clock, device):
    x = rows.draw(case["family"], case["rows"], case["n"], rows.DTYPES[case["dtype"]], device)
    result = {**case, "seconds": {}, "failed": {}}
    target, ones = torch.empty_like(x), torch.ones(case["rows"], device=device)
    runs = {"copy": lambda: target.copy_(x)}
    exact = methods.critical_beta(methods.sorted_gaps(x[:4]).double())
    for name, peer in methods.peers(device, sort=x.numel() <= SORT_LIMIT).items():
        try:
            out, beta = peer(x)
            if wrong := check(x, out, ones if beta is None else beta):
                raise ArithmeticError(wrong)
            near = None if beta is None else (beta[:4] - exact).abs() <= exact * 2**-20
            if name == "topk_softmax":
                result["topk_exact_share"] = near.double().mean().item()
            elif near is not None and not near.all():
                raise ArithmeticError(f"critical betas {beta[:4].tolist()}, expected {exact.tolist()}")
            runs[name] = lambda peer=peer: peer(x)
        except Exception as error:
            result["failed"][name] = f"{type(error).__name__}: {error}".splitlines()[0]
    runs["topk"] = lambda: torch.topk(x, min(methods.TOP_K, case["n"]), dim=-1)
    times = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        order = list(runs) if turn % 2 else list(reversed(runs))
        for name in order:
            seconds = clock.seconds(runs[name])
            if turn > 0:
                times[name].append(seconds)
    result["seconds"] = {name: statistics.median(taken) for name, taken in times.items()}
    return result


def main():
    args = argparse.ArgumentParser()
    args.add_argument("cases", nargs="?")
    args.add_argument("--json")
    args.add_argument("--seconds", type=float, default=200.0, help="no case is begun after so many seconds")
    args.add_argument("--cpu-dry-run", action="store_true")
    args = args.parse_args()
    device = "cpu" if args.cpu_dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"error: PyTorch {torch.__version__} sees no CUDA device; --cpu-dry-run needs none")
    if not args.cpu_dry_run and args.cases is None:
        sys.exit("error: no CASES.json; `critbeta bench --json` writes it")
    cases = DRY_CASES
    if args.cases is not None:
        with open(args.cases) as file:
            read = json.load(file)
        cases = [{key: case[key] for key in ["rows", "n", "dtype", "family"]} for case in read["cases"]]
    clock = HostClock() if args.cpu_dry_run else GpuClock()
    began, done, left_out = time.monotonic(), [], 0
    for case in cases:
        if time.monotonic() - began > args.seconds:
            left_out += 1
            continue
        torch.manual_seed(1)
        done.append(measure(case, clock, device))
        times = "  ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in done[-1]["seconds"].items())
        print(f"{case['rows']} x {case['n']} {case['dtype']} {case['family']}, us: {times}", flush=True)
        for name, why in done[-1]["failed"].items():
            print(f"  {name} failed: {why}", flush=True)
    failed = sorted({name for case in done for name in case["failed"]})
    facts = {"device": torch.cuda.get_device_name() if device == "cuda" else "CPU, times without meaning"}
    facts |= {
        "torch": torch.__version__,
        "triton": methods.triton_version(),
        "left_out": left_out,
        "cases": done,
    }
    if args.json:
        with open(args.json, "w") as file:
            json.dump(facts, file, indent=1)
    print(
        f"{len(done)} cases, {left_out} left out for time, peers that failed: {', '.join(failed) or 'none'}"
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
