"""Seeded nonsense gives a result or a documented exception, and never a panic of the compiled half."""

import random

import critbeta
import ml_dtypes
import numpy as np
import pytest

# Rows here have gaps of any size, of which `stats` warns.
pytestmark = pytest.mark.filterwarnings("ignore:scores:UserWarning")
DTYPES = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16]
SCORES = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-45, 1e-38, 3e38, -3e38, 65504, 1e300, -1e300, 88, 700]
SPECS = [
    "identity", "fixed:0", "fixed:1e300", "critical:ratio=1", "critical:ratio=1e308",
    "critical:resolve=1e308", "critical:floor=1e308", "su", "velickovic", "asentmax:delta=1,b=1,g=-300",
    "qwen-logn:train=2", "grok2:train=1.5",
    "calibrated:c=1e300,xi=300", "calibrated:c=0,xi=-300,anchor=2", "no such law", "",
]  # fmt: skip
DOCUMENTED = (ValueError, TypeError, MemoryError)


def array(pick, rng):
    shape = tuple(pick([0, 1, 1, 2, 3, 7, 16, 33, 130]) for _ in range(pick([0, 1, 1, 2, 2, 2, 3, 4])))
    values = np.asarray(rng.standard_normal(shape) * pick([0, 1, 1e-30, 1e30]))
    if pick([True, True, False]):
        values = np.where(rng.random(shape) < rng.random(), rng.choice(SCORES, size=shape), values)
    values = values.astype(pick([*DTYPES, *DTYPES, np.int8, np.uint16, object]))
    if values.ndim and pick([True, False]):
        values = values[..., :: pick([1, 2, -1])]
    if values.ndim > 1 and pick([True, False]):
        values = values.swapaxes(0, pick(range(values.ndim)))
    return values


def test_nonsense_is_answered():
    rng = np.random.default_rng(1)
    pick = random.Random(1).choice
    answered = refused = 0
    for _ in range(1500):
        with np.errstate(all="ignore"):
            scores = array(pick, rng)
        lead, n = scores.shape[:-1], scores.shape[-1] if scores.ndim else 0
        beyond, within = rng.integers(-1, n + 2, size=lead), rng.integers(0, n + 1, size=lead)
        lens = pick([None, None, 0, n, beyond, within, [1, 2], -5])
        positions = pick([None, None, 0, rng.integers(0, 100, size=lead), 2**63 - 1, 2**64 - 1, -1])
        empty = np.empty(scores.shape, np.float32), np.empty(scores.shape[::-1], np.float16)
        out = pick([None, scores, *empty])
        resolve, beta = pick([0, 0.69, 1e308, 5e-324, -1, np.nan]), pick([0, 1, 1e308, 5e-324, -1])
        head_dim = pick([0, 1, 4])
        shapes = [(pick([0, 1, 2, 3]), pick([0, 1, 7]), head_dim) for _ in "qk"]
        q, k = (rng.standard_normal(shape).astype(pick(DTYPES)) for shape in shapes)

        def columns():
            stats = critbeta.stats(scores, lens, resolve, beta, pick([None, 1, 2048, 0, -1, 2**64]))
            return [getattr(stats, name) for name in stats.names]

        places, scale = pick([None, 0, [0], 9]), pick([None, 1e300, 5e-324, -1])
        return_stats = pick([True, False])
        for call in [
            lambda: critbeta.softmax(scores, pick(SPECS), out, positions, lens, return_stats=return_stats),
            columns,
            lambda: critbeta.critical_beta(scores, resolve),
            lambda: critbeta.gap_count(scores),
            lambda: critbeta.diagnose(q=q, k=k, positions=places, scale=scale),
        ]:
            try:
                call()
                answered += 1
            except DOCUMENTED:
                refused += 1
    assert answered > 1000 and refused > 1000
