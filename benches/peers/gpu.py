"""critbeta and its peers on a GPU, in one process and in turns, beside what the model of critbeta predicts.

    python3 benches/peers/gpu.py --json GPU.json [--seconds 200]
    python3 benches/peers/gpu.py --dry-run [--json GPU.json]

It needs the package critbeta and PyTorch; Triton is a peer where it is installed. All methods of a case are
checked against float64 first, and then timed in alternating order with CUDA events, the L2 cache overwritten
before each; the median counts. A method that fails is named with what it said, and the others go on. The
cases come in the order of the goals: what --seconds leaves out is the least of them. --dry-run proves the
script without a GPU, on tiny rows, with critbeta's simulator where the package has it: its times mean
nothing. With TRITON_INTERPRET=1 it covers the Triton peer too."""

import argparse
import json
import statistics
import sys
import time

import methods
import rows
import torch
from check import check

import critbeta
import critbeta.torch
from critbeta import _core, _cuda

ROUNDS = 9
FLUSH_BYTES = 256 << 20
# Scores of a case with many rows: several times any L2 cache.
MANY_BYTES = 256 << 20
# A sort of more than this many scores takes longer than all else together.
SORT_LIMIT = 1 << 27
# The path of the model (critbeta plan) for the softmax and the statistics of a family.
PATHS = {
    "gaussian": ("near the top", "statistics"),
    "sink": ("sink", "statistics of a sink"),
    "student-t": ("student t", None),
}


def many(n, dtype, family="gaussian"):
    return {"rows": MANY_BYTES // n // (4 if dtype == "f32" else 2), "n": n, "dtype": dtype, "family": family}


def cases():
    """Many rows (G1 to G3), few long rows (G4), every family, then the lengths between."""
    both = ("f32", "bf16")
    yield from (many(1 << log, dtype) for log in range(12, 21, 2) for dtype in both)
    for count, kilo in [(1, 128), (1, 256), (1, 1024), (4, 128), (4, 1024), (8, 1024)]:
        yield from ({"rows": count, "n": kilo << 10, "dtype": d, "family": "gaussian"} for d in both)
    families = [family for family in rows.FAMILIES if family != "gaussian"]
    yield from (many(1 << 16, "f32", family) for family in ("sink", "student-t"))
    yield from (many(1 << 15, "f32", family) for family in families)
    yield from (many(1 << 16, "bf16", family) for family in ("sink", "student-t"))
    yield from (many(1 << log, dtype) for log in range(13, 20, 2) for dtype in both)


def dry_cases():
    shapes = [(3, 1), (4, 300), (2, 4097), (1, 20_001)]
    for at, family in enumerate(rows.FAMILIES):
        count, n = shapes[at % len(shapes)]
        yield {"rows": count, "n": n, "dtype": list(rows.DTYPES)[at % 3], "family": family}


class GpuClock:
    """Seconds on the device. The overwriting also keeps it busy while the host queues the launches to be
    timed; `wait` is for so many cycles more, where that takes the host longer."""

    def __init__(self, wait=0):
        self.scratch = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        self.wait = wait

    def seconds(self, run):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for value in (1, 2):
            self.scratch.fill_(value)
        if self.wait:
            torch.cuda._sleep(self.wait)
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


def simulate():
    """Lets the simulator run the launches on tensors in CPU memory. False if this package has none."""
    try:
        simulator = _core.Engine.simulated("sm_90")
    except RuntimeError as error:
        print(f"critbeta runs on the CPU here: {error}")
        return False
    _cuda.engine, _cuda.stream = lambda device: simulator, lambda device: 0
    critbeta.torch.is_launched = lambda scores: scores.numel() > 0
    return True


def ours(x, target):
    """critbeta's methods by name, and what each writes: probabilities into `target`, or nothing."""
    identity = _core.Rescaling.parse("identity")
    return {
        "softmax": lambda: critbeta.softmax(x, "identity", out=target),
        "critical_softmax": lambda: critbeta.softmax(x, "critical", out=target),
        "stats": lambda: _cuda.launch(x, identity),
    }


def wrong_ours(name, run, x, target, exact):
    """None, or what is wrong with a method of ours, by float64."""
    if name == "stats":
        found = critbeta.critical_beta(x[:4])
        found = torch.as_tensor(found, device=x.device).clamp_max(methods.LARGEST_BETA)
        near = (found - exact).abs() <= exact * 2**-22
        return None if near.all() else f"critical betas {found.tolist()}, expected {exact.tolist()}"
    target.fill_(float("nan"))
    run()
    beta = exact if name == "critical_softmax" else torch.ones_like(exact)
    return check(x, target, beta)


def predicted(case, device, is_simulated):
    """Seconds of our methods by the model: expected, fastest, slowest. Nothing for a GPU that it lacks."""
    if device == "cpu" and not is_simulated:
        return {}
    engine = _cuda.engine(torch.device(device))
    shape = (case["rows"], case["n"], case["dtype"])
    of = {path: times for has_out in (True, False) for path, *times in engine.predictions(*shape, has_out)}
    critical, stats = PATHS.get(case["family"], (None, None))
    wanted = {"softmax": "plain", "critical_softmax": critical, "stats": stats}
    return {name: of[path] for name, path in wanted.items() if path in of}


def measure(case, clock, device, is_simulated):
    x = rows.draw(case["family"], case["rows"], case["n"], rows.DTYPES[case["dtype"]], device)
    result = {**case, "seconds": {}, "failed": {}, "predicted": predicted(case, device, is_simulated)}
    target, ones = torch.empty_like(x), torch.ones(case["rows"], device=device)
    runs = {"copy": lambda: target.copy_(x)}
    exact = methods.critical_beta(methods.sorted_gaps(x[:4]).double())
    # A package without a simulator has no launches on a CPU.
    mine = ours(x, target) if device == "cuda" or is_simulated else {}
    for name, run in mine.items():
        try:
            if wrong := wrong_ours(name, run, x, target, exact):
                raise ArithmeticError(wrong)
            runs[name] = run
        except Exception as error:
            result["failed"][name] = f"{type(error).__name__}: {error}".splitlines()[0]
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
    args.add_argument("--json")
    args.add_argument("--seconds", type=float, default=200.0, help="no case is begun after so many seconds")
    args.add_argument("--dry-run", action="store_true")
    args = args.parse_args()
    device = "cpu" if args.dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"error: PyTorch {torch.__version__} sees no CUDA device; --dry-run needs none")
    is_simulated = args.dry_run and simulate()
    clock = HostClock() if args.dry_run else GpuClock()
    began, done, left_out = time.monotonic(), [], 0
    for case in dry_cases() if args.dry_run else cases():
        if time.monotonic() - began > args.seconds:
            left_out += 1
            continue
        torch.manual_seed(1)
        done.append(measure(case, clock, device, is_simulated))
        times = "  ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in done[-1]["seconds"].items())
        print(f"{case['rows']} x {case['n']} {case['dtype']} {case['family']}, us: {times}", flush=True)
        for name, why in done[-1]["failed"].items():
            print(f"  {name} failed: {why}", flush=True)
    failed = sorted({name for case in done for name in case["failed"]})
    facts = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU, times without meaning",
        "torch": torch.__version__,
        "triton": methods.triton_version(),
        "left_out": left_out,
        "cases": done,
    }
    if args.json:
        with open(args.json, "w") as file:
            json.dump(facts, file, indent=1)
    print(
        f"{len(done)} cases, {left_out} left out for time, methods that failed: {', '.join(failed) or 'none'}"
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
