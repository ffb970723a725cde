"""The definitions in plain NumPy, float64 and sorted, without the crate. The tests compare with them."""

import math
from typing import NamedTuple

import numpy as np

ULP = 2.0**-23


class Reference(NamedTuple):
    n: int
    max: float
    argmax: int
    ties: int
    critical_beta: float
    resolved_beta: float
    gaps: np.ndarray
    counts: np.ndarray


def gaps_of(row):
    """Returns the sorted gaps of a float32 row (one float32 subtraction per visible score), and N at each."""
    visible = row[row >= np.finfo(np.float32).min / 2].astype(np.float32)
    if len(visible) == 0:
        return np.zeros(0), np.zeros(0, np.int64)
    with np.errstate(over="ignore"):
        gaps = np.sort((visible.max() - visible).astype(np.float64))
    return gaps, np.searchsorted(gaps, gaps, side="right")


def lambda_of(gaps, counts, resolve):
    """Returns the sup over t > 0 with log N(t) > r of (log N(t) - r) / t."""
    if len(gaps) == 0:
        return 0.0
    if math.log(counts[0]) > resolve:
        return math.inf
    finite = [(t, math.log(n)) for t, n in zip(gaps, counts) if 0 < t < math.inf]
    ratios = [(log_n - resolve) / t for t, log_n in finite if log_n > resolve]
    return max(ratios, default=0.0)


def reference(row, resolve=0.0):
    """Measures a float32 row without NaN or +inf."""
    gaps, counts = gaps_of(row)
    top = float(row.max()) if len(gaps) else 0.0
    argmax = int(np.argmax(row)) if len(gaps) else 0
    ties = int(counts[0]) if len(gaps) else 0
    betas = lambda_of(gaps, counts, 0.0), lambda_of(gaps, counts, resolve)
    return Reference(len(gaps), top, argmax, ties, *betas, gaps, counts)


def partition(gaps, beta):
    """Returns Z(beta)."""
    if beta == math.inf:
        return float(np.count_nonzero(gaps == 0))
    with np.errstate(invalid="ignore"):
        terms = np.where((gaps == 0) | (beta == 0), 1.0, np.exp(-beta * gaps))
    return math.fsum(terms)


def softmax(row, beta):
    """Returns the probabilities of a float32 row, float64, and z = beta x gap of each."""
    visible = row > -np.inf
    weights, z = np.zeros(len(row)), np.zeros(len(row))
    if not visible.any():
        return weights, z
    with np.errstate(over="ignore", invalid="ignore"):
        gaps = (row[visible].max() - row[visible]).astype(np.float64)
        z[visible] = np.where((gaps == 0) | (beta == 0), 0.0, beta * gaps)
    weights[visible] = np.exp(-z[visible]) / partition(gaps, beta)
    return weights, z


def assert_probabilities(found, row, beta, rounding=0.0):
    """Checks `found` within (4 + z) 2^-23 + `rounding` relative, and one rounding of the smallest number."""
    expected, z = softmax(row, beta)
    z = np.where(expected > 0, z, 0.0)
    smallest = 2.0**-150 if rounding == 0 else 2.0**-25 if rounding == 2.0**-11 else 2.0**-134
    allowed = expected * ((4 + z) * ULP + rounding) + smallest
    error = np.abs(np.asarray(found, np.float64) - expected)
    worst = np.argmax(error - allowed) if len(row) else 0
    assert (error <= allowed).all(), (worst, found[worst], expected[worst], z[worst])


def bfloat16(values):
    """Rounds float32 values to bfloat16 and back, to nearest, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def rows(n, seed=1):
    """Returns named float32 rows of n scores that are hard to get right."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(n).astype(np.float32)
    spiky = normal.copy()
    spiky[rng.integers(n, size=3)] += 30
    sink = normal.copy()
    sink[0] = 20
    tied = normal.copy()
    tied[rng.integers(n, size=5)] = 9
    masked = np.where(rng.random(n) < 0.5, -np.inf, normal).astype(np.float32)
    causal = normal.copy()
    causal[n // 3 + 1 :] = -np.inf
    grid = (-np.log(np.arange(1, n + 1)) / 2.5).astype(np.float32)
    lattice = (rng.integers(-40, 41, size=n) / 8).astype(np.float32)
    far = normal.copy()
    far[: n // 2] = -1.6e38
    far[n // 2] = 3e38
    return {
        "normal": normal,
        "spiky": spiky,
        "sink": sink,
        "tied": tied,
        "masked": masked,
        "causal": causal,
        "log grid": rng.permutation(grid),
        "bfloat16": bfloat16(normal),
        "lattice": lattice,
        "student": rng.standard_t(2, n).astype(np.float32),
        "equal": np.full(n, 1.5, np.float32),
        "all masked": np.full(n, -np.inf, np.float32),
        "overflowing gaps": far,
    }
