"""One table of ratios: critbeta against the copy, against itself and against its peers.

    python3 benches/peers/ratios.py OURS.json PEERS.json RECORDS/

OURS.json is of `critbeta bench --json`, PEERS.json of gpu.py; either may be missing, and the columns that
need it stay empty. Writes ours.csv, peers.csv and ratios.csv into RECORDS and prints the table with the goals
and how many cases meet each."""

import csv
import json
import pathlib
import sys

KEY = ["rows", "n", "dtype", "family"]
# G4's floor: the row's bytes at the bandwidth of the largest copy of the run, and a launch with one barrier
# of the grid.
FLOOR_SECONDS = 2.5e-6
FEW_ROWS = 8
# Read and written: goals of many rows are for 256 MiB of scores and more.
MANY_BYTES = 512 << 20

# name, goal number, what it must reach, which cases count, how it is computed from our and the peers'
# seconds.
GOALS = [
    ("copy/softmax", "G1", ">=", 0.96, "full", lambda o, p, f: o["copy"] / o["softmax"]),
    ("compile/softmax", "G1", ">=", 1.45, "full", lambda o, p, f: p["compile"] / o["softmax"]),
    ("eager/softmax", "G1", ">=", 1.9, "long", lambda o, p, f: p["eager"] / o["softmax"]),
    ("triton/softmax", "G1", ">=", 1.0, "full", lambda o, p, f: p["triton"] / o["softmax"]),
    ("copy/critical", "G2", ">=", 0.90, "full", lambda o, p, f: o["copy"] / o["critical_softmax"]),
    ("critical/softmax", "G2", "<=", 1.08, "full", lambda o, p, f: o["critical_softmax"] / o["softmax"]),
    (
        "topk+softmax/critical",
        "G2",
        ">=",
        5.0,
        "full",
        lambda o, p, f: p["topk_softmax"] / o["critical_softmax"],
    ),
    ("sort/critical", "G2", ">=", 30.0, "full", lambda o, p, f: p["sort"] / o["critical_softmax"]),
    ("own topk/critical", "", "", None, "full", lambda o, p, f: o["topk"] / o["critical_softmax"]),
    # A copy reads half of what it moves: half its time stands for the time of reading alone.
    ("half copy/stats", "G3", ">=", 0.90, "full", lambda o, p, f: o["copy"] / 2 / o["stats"]),
    ("topk/stats", "G3", ">=", 4.0, "full", lambda o, p, f: p["topk"] / o["stats"]),
    ("critical/floor", "G4", "<=", 2.0, "few", lambda o, p, f: o["critical_softmax"] / f),
    ("compile/critical", "G4", ">=", 3.0, "few", lambda o, p, f: p["compile"] / o["critical_softmax"]),
]


def cases(path):
    """{key: seconds} of a result file, and what ran it; nothing where there is no file."""
    if not pathlib.Path(path).is_file():
        return {}, None
    with open(path) as file:
        read = json.load(file)
    return {tuple(case[key] for key in KEY): case["seconds"] for case in read["cases"]}, read["device"]


def moved_bytes(key):
    rows, n, dtype, _ = key
    return 2 * rows * n * (4 if dtype == "f32" else 2)


def counts(scope, key):
    """Whether a case counts for goals of that scope: few long rows, or enough bytes to fill the GPU."""
    rows, n, *_ = key
    if scope == "few":
        return rows <= FEW_ROWS and n >= 1 << 17
    return moved_bytes(key) >= MANY_BYTES and (scope == "full" or n >= 1 << 15)


def table(ours, peers):
    """Per case: its key and each ratio, None where a time is missing."""
    # The limit is the faster of the driver's copy and PyTorch's.
    limit = {key: min(seconds["copy"], peers.get(key, seconds)["copy"]) for key, seconds in ours.items()}
    bandwidth = max(moved_bytes(key) / seconds for key, seconds in limit.items())
    for key, seconds in ours.items():
        floor = moved_bytes(key) / bandwidth + FLOOR_SECONDS
        ratios = []
        for *_, ratio in GOALS:
            try:
                ratios.append(ratio({**seconds, "copy": limit[key]}, peers.get(key, {}), floor))
            except KeyError:
                ratios.append(None)
        yield key, ratios


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
    if len(sys.argv) != 4:
        sys.exit("usage: ratios.py OURS.json PEERS.json RECORDS")
    (ours, device), (peers, peers_device) = cases(sys.argv[1]), cases(sys.argv[2])
    if not ours:
        sys.exit(f"error: no cases in {sys.argv[1]}: no ratio can be had")
    records = pathlib.Path(sys.argv[3])
    write_seconds(records / "ours.csv", ours)
    write_seconds(records / "peers.csv", peers)
    rows = list(table(ours, peers))
    names = [name for name, *_ in GOALS]
    with open(records / "ratios.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(KEY + names)
        out.writerows([*key, *("" if r is None else f"{r:.4f}" for r in ratios)] for key, ratios in rows)
    print(f"ours on {device}; peers on {peers_device or 'nothing: they did not run'}")
    print(
        f"{'rows x n':>17} {'dtype':5} {'family':10} "
        + " ".join(f"{name:>{max(8, len(name))}}" for name in names)
    )
    for (count, n, dtype, family), ratios in rows:
        cells = [("" if r is None else f"{r:.3f}") for r in ratios]
        report = " ".join(f"{cell:>{max(8, len(name))}}" for name, cell in zip(names, cells))
        print(f"{f'{count} x {n}':>17} {dtype:5} {family:10} {report}")
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
