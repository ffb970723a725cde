"""Two tables of ratios: critbeta against the copy, itself and its peers, and against its predictions.

    python3 benches/peers/ratios.py GPU.json RECORDS/

GPU.json is of gpu.py: all methods took turns in one process. Writes seconds.csv, ratios.csv and predicted.csv
into RECORDS, and prints the tables, how many cases meet each goal, and where measured and predicted times are
furthest apart."""

import csv
import json
import math
import pathlib
import sys

KEY = ["rows", "n", "dtype", "family"]
# G4's floor: the row's bytes at the bandwidth of the largest copy of the run, and a launch with one barrier
# of the grid.
FLOOR_SECONDS = 2.5e-6
FEW_ROWS = 8
# A second read of the scores moves 1.5 times the bytes of a copy: no launch with more of its speed did that.
ONE_READ = 0.67
# Read and written: goals of many rows are for 256 MiB of scores and more.
MANY_BYTES = 512 << 20

# name, goal number, what it must reach, which cases count, how it is computed from the seconds of a case and
# its floor.
GOALS = [
    ("copy/softmax", "G1", ">=", 0.96, "full", lambda s, f: s["copy"] / s["softmax"]),
    ("compile/softmax", "G1", ">=", 1.45, "full", lambda s, f: s["compile"] / s["softmax"]),
    ("eager/softmax", "G1", ">=", 1.9, "long", lambda s, f: s["eager"] / s["softmax"]),
    ("triton/softmax", "G1", ">=", 1.0, "full", lambda s, f: s["triton"] / s["softmax"]),
    ("copy/critical", "G2", ">=", 0.90, "full", lambda s, f: s["copy"] / s["critical_softmax"]),
    ("critical/softmax", "G2", "<=", 1.08, "full", lambda s, f: s["critical_softmax"] / s["softmax"]),
    (
        "topk+softmax/critical",
        "G2",
        ">=",
        5.0,
        "full",
        lambda s, f: s["topk_softmax"] / s["critical_softmax"],
    ),
    ("sort/critical", "G2", ">=", 30.0, "full", lambda s, f: s["sort"] / s["critical_softmax"]),
    # A copy reads half of what it moves: half its time stands for the time of reading alone.
    ("half copy/stats", "G3", ">=", 0.90, "full", lambda s, f: s["copy"] / 2 / s["stats"]),
    ("topk/stats", "G3", ">=", 4.0, "full", lambda s, f: s["topk"] / s["stats"]),
    ("critical/floor", "G4", "<=", 2.0, "few", lambda s, f: s["critical_softmax"] / f),
    ("compile/critical", "G4", ">=", 3.0, "few", lambda s, f: s["compile"] / s["critical_softmax"]),
]


def read(path):
    """{key: case} of a result file, and what ran it."""
    with open(path) as file:
        found = json.load(file)
    return {tuple(case[key] for key in KEY): case for case in found["cases"]}, found["device"]


def moved_bytes(key):
    rows, n, dtype, _ = key
    return 2 * rows * n * (4 if dtype == "f32" else 2)


def counts(scope, key):
    """Whether a case counts for goals of that scope: few long rows, or enough bytes to fill the GPU."""
    rows, n, *_ = key
    if scope == "few":
        return rows <= FEW_ROWS and n >= 1 << 17
    return moved_bytes(key) >= MANY_BYTES and (scope == "full" or n >= 1 << 15)


def table(cases):
    """Per case: its key and each ratio, None where a time is missing."""
    bandwidth = max(moved_bytes(key) / case["seconds"]["copy"] for key, case in cases.items())
    for key, case in cases.items():
        floor = moved_bytes(key) / bandwidth + FLOOR_SECONDS
        ratios = []
        for *_, ratio in GOALS:
            try:
                ratios.append(ratio(case["seconds"], floor))
            except KeyError:
                ratios.append(None)
        yield key, ratios


def predictions(cases):
    """Of each time with a prediction: key, method, measured and expected seconds, the bounds, the ratio."""
    for key, case in cases.items():
        for method, (expected, fastest, slowest) in case["predicted"].items():
            if method in case["seconds"]:
                measured = case["seconds"][method]
                yield key, method, measured, expected, fastest, slowest, measured / expected


def comparison(found):
    """The lines that say how good the model is: by method, and the cases furthest from it."""
    if not found:
        return ["no predictions: the model knows an H200"]
    lines = [f"{'measured / predicted':24} {'within':>9} {'smallest':>9} {'median':>9} {'largest':>9}"]
    for method in dict.fromkeys(of[1] for of in found):
        ratios = sorted(of[-1] for of in found if of[1] == method)
        within = sum(of[4] <= of[2] <= of[5] for of in found if of[1] == method)
        cells = f"{ratios[0]:9.3f} {ratios[len(ratios) // 2]:9.3f} {ratios[-1]:9.3f}"
        lines.append(f"{method:24} {f'{within}/{len(ratios)}':>9} {cells}")
    lines.append("furthest from it, us: measured, predicted (fastest to slowest)")
    furthest = sorted(found, key=lambda of: -abs(math.log(of[-1])))[:8]
    for (count, n, dtype, family), method, measured, expected, fastest, slowest, ratio in furthest:
        times = f"{measured * 1e6:.1f}, {expected * 1e6:.1f} ({fastest * 1e6:.1f} to {slowest * 1e6:.1f})"
        lines.append(f"  {count} x {n} {dtype} {family}, {method}: {times}, ratio {ratio:.2f}")
    return lines


def write_seconds(path, found):
    names = list(dict.fromkeys(name for seconds in found.values() for name in seconds))
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(KEY + [f"{name} s" for name in names])
        out.writerows([*key, *(seconds.get(name, "") for name in names)] for key, seconds in found.items())


def summary(rows):
    """How many of the cases that count meet each goal, and the worst and the median of them."""
    lines = [f"{'ratio':24} {'goal':12} {'met':>9} {'worst':>9} {'median':>9}"]
    for at, (name, goal, sense, limit, scope, _) in enumerate(GOALS):
        found = sorted(ratios[at] for key, ratios in rows if ratios[at] is not None and counts(scope, key))
        if not found:
            lines.append(f"{name:24} {goal} {sense} {limit or '':7}  no case")
            continue
        worst, median = found[-1] if sense == "<=" else found[0], found[len(found) // 2]
        met = sum(r >= limit if sense == ">=" else r <= limit for r in found) if limit else None
        report = f"{met}/{len(found)}" if limit else "-"
        wanted = f"{goal} {sense} {limit}" if limit else ""
        lines.append(f"{name:24} {wanted:12} {report:>9} {worst:9.3f} {median:9.3f}")
    return lines


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: ratios.py GPU.json RECORDS")
    cases, device = read(sys.argv[1])
    if not cases:
        sys.exit(f"error: no cases in {sys.argv[1]}: no ratio can be had")
    records = pathlib.Path(sys.argv[2])
    write_seconds(records / "seconds.csv", {key: case["seconds"] for key, case in cases.items()})
    rows = list(table(cases))
    names = [name for name, *_ in GOALS]
    with open(records / "ratios.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(KEY + names)
        out.writerows([*key, *("" if r is None else f"{r:.4f}" for r in ratios)] for key, ratios in rows)
    found = list(predictions(cases))
    with open(records / "predicted.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*KEY, "method", "measured s", "predicted s", "fastest s", "slowest s", "ratio"])
        out.writerows([*key, *rest] for key, *rest in found)
    print(f"on {device}, all in turns in one process")
    print(
        f"{'rows x n':>17} {'dtype':5} {'family':10} "
        + " ".join(f"{name:>{max(8, len(name))}}" for name in names)
    )
    for (count, n, dtype, family), ratios in rows:
        cells = [("" if r is None else f"{r:.3f}") for r in ratios]
        report = " ".join(f"{cell:>{max(8, len(name))}}" for name, cell in zip(names, cells))
        print(f"{f'{count} x {n}':>17} {dtype:5} {family:10} {report}")
    print("\n".join(summary(rows) + comparison(found)))
    at = names.index("copy/softmax")
    slow = [key for key, ratios in rows if ratios[at] and ratios[at] < ONE_READ and counts("full", key)]
    if slow:
        cases = ", ".join(f"{count} x {n} {dtype} {family}" for count, n, dtype, family in slow)
        sys.exit(f"error: below {ONE_READ} of a copy, so the scores may have been read twice: {cases}")


if __name__ == "__main__":
    main()
