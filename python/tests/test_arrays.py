"""Shapes, strides, dtypes, lengths and outputs, and arguments that do not fit."""

import critbeta
import ml_dtypes
import numpy as np
import pytest
from reference import assert_probabilities, bfloat16, rows

BF16 = ml_dtypes.bfloat16


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_any_leading_shape():
    scores = normal(2, 3, 5, 40)
    stats = critbeta.stats(scores)
    assert stats.shape == stats.critical_beta.shape == (2, 3, 5)
    flat = critbeta.stats(scores.reshape(30, 40))
    for name in ["n", "critical_beta", "entropy", "argmax"]:
        assert np.array_equal(getattr(stats, name).ravel(), getattr(flat, name)), name
    assert stats.head[1, 2, 0] == 5 and stats.row[1, 2, 3] == 3
    assert critbeta.softmax(scores).shape == scores.shape
    assert critbeta.softmax(scores).tobytes() == critbeta.softmax(scores.reshape(30, 40)).tobytes()
    one = critbeta.stats(scores[0, 0, 0])
    assert one.shape == () and float(one.critical_beta) == flat.critical_beta[0]
    assert critbeta.critical_beta(scores[0, 0, 0]) == flat.critical_beta[0]
    assert isinstance(critbeta.critical_beta(scores[0, 0, 0]), float)
    assert critbeta.softmax(scores[0, 0, 0], return_stats=True)[1].n.shape == ()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (0, 0), (2, 0, 4), (2, 3, 0)])
def test_empty_arrays(shape):
    for dtype in [np.float32, np.float16, np.float64, BF16]:
        scores = np.zeros(shape, dtype)
        stats = critbeta.stats(scores, resolve=0.5)
        assert stats.critical_beta.shape == shape[:-1] and not stats.n.any()
        assert not np.any(critbeta.critical_beta(scores)) and not stats.max.any()
        probabilities, row_stats = critbeta.softmax(scores, return_stats=True)
        assert probabilities.shape == shape and row_stats.beta.shape == shape[:-1]
        critbeta.softmax(scores, "su", out=np.zeros(shape, np.float16))
        assert len(critbeta.diagnose(scores).rows) == int(np.prod(shape[:-1]))
    assert critbeta.gap_count(np.zeros(0, np.float32)).gaps.shape == (0,)


def strided():
    wide = normal(6, 100)
    yield "columns of a wider array", wide[:, 10:70]
    yield "every other row", wide[::2, :60]
    yield "one row", wide[3:4, 5:65]
    yield "rows backwards", wide[::-1, :60]
    yield "transposed", normal(60, 6).T
    yield "every other column", wide[:, ::2]
    yield "one row for all", np.broadcast_to(wide[0, :60], (6, 60))
    yield "heads behind rows", normal(4, 3, 60).transpose(1, 0, 2)
    yield "one column", wide[:, 17:18]
    yield "column major", np.asfortranarray(wide)
    yield "misaligned", np.frombuffer(b"x" + wide.tobytes(), np.uint8)[1:].view(np.float32).reshape(6, 100)
    read_only = wide.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only


@pytest.mark.parametrize("scores", [pytest.param(scores, id=name) for name, scores in strided()])
def test_strides(scores):
    for dtype in [np.float32, np.float16, np.float64, BF16]:
        view = scores if dtype == np.float32 else like(scores, dtype)
        dense = np.ascontiguousarray(view)
        assert critbeta.softmax(view).tobytes() == critbeta.softmax(dense).tobytes()
        assert np.array_equal(critbeta.stats(view).contact_rank, critbeta.stats(dense).contact_rank)
        assert np.array_equal(critbeta.critical_beta(view), critbeta.critical_beta(dense))


def like(array, dtype):
    """Returns the same values at the same strides (in elements), if NumPy can make such an array."""
    if all(stride % array.itemsize == 0 and stride > 0 for stride in array.strides) and array.flags.aligned:
        steps = [stride // array.itemsize for stride in array.strides]
        base = np.zeros(1 + sum((d - 1) * step for d, step in zip(array.shape, steps)), dtype)
        strides = [step * base.itemsize for step in steps]
        view = np.lib.stride_tricks.as_strided(base, array.shape, strides)
        view[...] = array
        return view
    return array.astype(dtype)


def test_rows_apart_are_not_copied():
    wide = normal(8, 100)
    view = wide[:, 10:70]
    block, lead = critbeta._arrays.rows(view, "scores")
    assert lead == (8,) and np.shares_memory(block, wide)
    deep, _ = critbeta._arrays.rows(normal(2, 3, 8, 100)[..., :50], "scores")
    assert deep.shape == (48, 50) and deep.strides == (400, 4)


@pytest.mark.parametrize("dtype", [np.float16, BF16])
def test_sixteen_bit_scores_are_their_values_in_float32(dtype):
    block = np.stack(list(rows(513).values())[:-1]).astype(dtype)
    wide = block.astype(np.float32)
    assert np.array_equal(critbeta.critical_beta(block), critbeta.critical_beta(wide))
    for column in ["n", "ties", "contact_rank", "contact_gap", "log_partition"]:
        found, expected = (getattr(critbeta.stats(scores), column) for scores in (block, wide))
        assert np.array_equal(found, expected), column
    assert critbeta.softmax(block).tobytes() == critbeta.softmax(wide).tobytes()
    if dtype == BF16:
        finite = np.stack(list(rows(513).values())[:4])
        assert np.array_equal(finite.astype(BF16).astype(np.float32), bfloat16(finite))


@pytest.mark.parametrize(("dtype", "rounding"), [(np.float32, 0.0), (np.float16, 2.0**-11), (BF16, 2.0**-8)])
def test_out_is_written_in_place(dtype, rounding):
    scores = np.stack([rows(700)["spiky"], rows(700)["lattice"]])
    out = np.full(scores.shape, 7, dtype)
    assert critbeta.softmax(scores, "identity", out=out) is out
    for found, row in zip(out, scores):
        assert_probabilities(found.astype(np.float32), row, 1.0, rounding)
    result, stats = critbeta.softmax(scores, "identity", out=out, return_stats=True)
    assert result is out and stats.n.tolist() == [700, 700]
    # Memory around out stays as it is.
    around = np.full((4, 700), 7, dtype)
    critbeta.softmax(scores, "identity", out=around[1:3])
    assert (around[::3] == 7).all() and around[1:3].tobytes() == out.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("spec", ["identity", "critical:ratio=1", "su"])
def test_out_may_be_scores(dtype, spec):
    scores = np.stack(list(rows(700).values())[:-1]).astype(dtype)
    expected = np.empty_like(scores)
    critbeta.softmax(scores, spec, out=expected, lens=650)
    result, stats = critbeta.softmax(scores, spec, out=scores, lens=650, return_stats=True)
    assert result is scores and scores.tobytes() == expected.tobytes() and stats.n.max() == 650


def test_lens_and_positions():
    scores = normal(2, 3, 50)
    behind = scores.copy()
    behind[..., 20:] = np.nan
    stats = critbeta.stats(behind, lens=20)
    assert np.array_equal(stats.critical_beta, critbeta.critical_beta(scores[..., :20]))
    assert (stats.position == 19).all() and not stats.poisoned.any()
    lens = np.array([[0, 1, 20], [50, 7, 3]], np.uint8)
    probabilities, row_stats = critbeta.softmax(scores, "identity", lens=lens, return_stats=True)
    assert np.array_equal(row_stats.n, lens)
    for at in np.ndindex(2, 3):
        assert_probabilities(probabilities[at][: lens[at]], scores[at][: lens[at]], 1.0)
        assert not probabilities[at][lens[at] :].any()
    assert np.array_equal(critbeta.stats(scores, lens=lens[0].astype(">i8")).n, [[0, 1, 20]] * 2)
    # Qwen's law depends on the position alone, not on the length.
    beta = critbeta.softmax(scores, "qwen-logn:train=10", positions=[4, 9, 99], return_stats=True)[1].beta
    assert np.allclose(beta, [1, 1, 2], rtol=1e-15) and beta.shape == (2, 3)
    beta = critbeta.softmax(scores, "qwen-logn:train=10", lens=lens, return_stats=True)[1].beta
    assert np.allclose(beta[1, 0], np.log(50) / np.log(10)) and beta[1, 2] == 1
    masked = scores[0, :1].copy()
    masked[0, 30:] = -np.inf
    assert critbeta.stats(masked).position == [29]
    beta = critbeta.softmax(masked, "qwen-logn:train=10", return_stats=True)[1].beta
    assert np.allclose(beta, np.log(30) / np.log(10))


class Shared:
    """An array that offers DLPack and nothing else."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device, self.shape = array, device, array.shape

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **how):
        return self.array.__dlpack__(**how)


def test_dlpack_is_shared():
    scores, out = normal(3, 90), np.zeros((3, 90), np.float32)
    holder = Shared(out)
    assert critbeta.softmax(Shared(scores), "identity", out=holder) is holder
    assert out.tobytes() == critbeta.softmax(scores, "identity").tobytes()
    block, _ = critbeta._arrays.rows(Shared(scores), "scores")
    assert np.shares_memory(block, scores)
    message = r"scores is on DLPack device 2:1: expected the CPU .*scores\.cpu\(\)"
    with pytest.raises(ValueError, match=message):
        critbeta.stats(Shared(scores, device=(2, 1)))
    message = r"scores is Shared of shape \(3, 90\): expected numbers of a dtype that NumPy has"
    with pytest.raises(TypeError, match=message):
        critbeta.stats(Shared(scores.astype(BF16)))
    with pytest.raises(TypeError, match="int64"):
        critbeta.stats(Shared(np.zeros((3, 90), np.int64)))
    read_only = np.zeros((3, 90), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        critbeta.softmax(scores, out=Shared(read_only))


X = np.zeros((3, 8), np.float32)
READ_ONLY = np.zeros((3, 8), np.float32)
READ_ONLY.flags.writeable = False
MASKED = np.ma.masked_array(X, X > 1)
SU = critbeta.Rescaling.parse("su")
BUFFER = np.zeros(100, np.float32)
WIDE = np.zeros((3, 16), np.float32)

softmax, stats = critbeta.softmax, critbeta.stats
REFUSED = [
    # The call, the exception, and its message.
    (lambda: stats(np.float32(1)), ValueError, r"scores of shape \(\): expected \[\.\.\., n\]"),
    (lambda: stats(3.0), ValueError, r"scores of shape \(\)"),
    (lambda: stats(X.astype(np.int32)), TypeError, r"dtype\('int32'\) of shape \(3, 8\): expected float32"),
    (lambda: stats(X.astype(np.uint16)), TypeError, "uint16"),
    (lambda: stats(X.astype(complex)), TypeError, "complex128"),
    (lambda: stats(X.astype(">f4")), TypeError, "native byte order"),
    (lambda: stats(X.astype(np.longdouble)), TypeError, "expected float32"),
    (lambda: stats(X.astype(ml_dtypes.float8_e4m3fn)), TypeError, "float8"),
    (lambda: stats(X.astype(object)), TypeError, r"dtype\('O'\)"),
    (lambda: stats("scores"), TypeError, "<U6"),
    (lambda: stats(None), TypeError, r"dtype\('O'\)"),
    (lambda: stats([[1.0], [1.0, 2.0]]), ValueError, "scores is list: expected an array: .*inhomogeneous"),
    (lambda: stats(MASKED), TypeError, r"scores is a masked array, .*scores\.filled\(value\); .*-inf"),
    (lambda: softmax(X, out=MASKED), TypeError, "out is a masked array"),
    (lambda: stats(X, lens=np.ma.masked_array([1, 2, 3])), TypeError, "lens is a masked array"),
    (lambda: softmax(X, positions=np.ma.masked_array([1, 2, 3])), TypeError, "positions is a masked array"),
    (lambda: stats(X, lens=np.ones(3, BF16)), TypeError, "lens is bfloat16: expected integers"),
    (lambda: softmax(X, positions=np.ones(3, BF16)), TypeError, "positions is bfloat16: expected integers"),
    (lambda: stats(X, lens=[[1], [2, 3]]), ValueError, "lens is list: expected an array: .*inhomogeneous"),
    (lambda: stats(X, lens=[None] * 3), TypeError, r"lens is dtype\('O'\): expected integers"),
    (lambda: stats(X, lens=[1, 2]), ValueError, r"lens of shape \(2,\): expected one per row.*\(3,\)"),
    (lambda: stats(X, lens=[1, 2, 9]), ValueError, "lens: 9 of row 2, expected 0 to the 8 columns"),
    (lambda: stats(X, lens=[1, -2, 3]), ValueError, "lens: -2 of row 1"),
    (lambda: stats(X, lens=[1.0, 2.0, 3.0]), TypeError, "expected integers"),
    (lambda: stats(X, lens=2**63), ValueError, "expected at most"),
    (lambda: stats(X, resolve=-1), ValueError, "resolve must be finite and at least 0 nats, found -1"),
    (lambda: stats(X, resolve=float("nan")), ValueError, "resolve"),
    (lambda: stats(X, beta=float("inf")), ValueError, "beta must be finite"),
    (lambda: stats(X, beta="1"), TypeError, "must be real number, not str"),
    (lambda: stats(X, top_k=0), ValueError, "top_k is 0: expected 1 to 2048"),
    (lambda: stats(X, top_k=9999), ValueError, "top_k is 9999: expected 1 to 2048"),
    (lambda: stats(X, top_k=-1), ValueError, "top_k is -1: expected 1 to 2048"),
    (lambda: stats(X, top_k=10**5000), ValueError, "top_k is a longer number: expected 1 to 2048"),
    (lambda: stats(X, top_k="1"), TypeError, "integer"),
    (lambda: critbeta.diagnose(X, seed=-1), ValueError, "seed is -1: expected 0 to 18446744073709551615"),
    (lambda: stats(np.empty((2**57, 0), np.float32)), MemoryError, "144115188075855872 rows"),
    (lambda: critbeta.critical_beta(X, resolve=float("inf")), ValueError, "resolve"),
    (lambda: critbeta.gap_count(X), ValueError, r"row of shape \(3, 8\): expected one row, \[n\]"),
    (lambda: softmax(X, "logn"), ValueError, 'rescaling "logn": unknown name .*expected identity, fixed'),
    (lambda: softmax(X, "critical:ratio=-1"), ValueError, "ratio must be"),
    (lambda: softmax(X, "calibrated:cal.json"), ValueError, "one law per head"),
    (lambda: softmax(X, 1.3), TypeError, "rescaling is float: expected critbeta.Rescaling"),
    (
        lambda: softmax(X, "su", positions=[0, -1, 2]),
        ValueError,
        "positions: -1 of row 1, expected 0 to 4294967295",
    ),
    (lambda: softmax(X, "su", positions=2**32), ValueError, "positions: 4294967296 of row 0, expected 0 to"),
    (lambda: softmax(X, "su", positions=np.zeros((2, 3), int)), ValueError, r"positions of shape \(2, 3\)"),
    (lambda: softmax(X, out=X[:2].copy()), ValueError, r"out of shape \(2, 8\): expected \(3, 8\)"),
    (lambda: softmax(X, out=X.ravel().copy()), ValueError, r"out of shape \(24,\)"),
    (lambda: softmax(X, out=X.astype(np.float64)), TypeError, "expected float32, float16 or bfloat16"),
    (lambda: softmax(X, out=X.astype(np.uint16)), TypeError, "uint16"),
    (lambda: softmax(X, out=X.astype(">f2")), TypeError, "native"),
    (lambda: softmax(X, out=X.tolist()), TypeError, "out is list: expected an array"),
    (lambda: softmax(X, out=READ_ONLY), ValueError, "out is read-only"),
    (lambda: softmax(READ_ONLY, out=READ_ONLY), ValueError, "out is read-only"),
    (lambda: softmax(X, out=WIDE[:, ::2]), ValueError, r"strides \(64, 8\) bytes: expected C-contiguous"),
    (lambda: softmax(X, out=WIDE[:, :8]), ValueError, "expected C-contiguous"),
    (lambda: softmax(X, out=np.zeros((8, 3), np.float32).T), ValueError, "expected C-contiguous"),
    (
        lambda: softmax(BUFFER[:24].reshape(3, 8), out=BUFFER[4:28].reshape(3, 8)),
        ValueError,
        r"out shares memory with scores of shape \(3, 8\)",
    ),
    (
        lambda: softmax(X, out=X.view(np.float16)[:, :8].copy().view(np.int16)),
        TypeError,
        "int16",
    ),
    (
        lambda: softmax(BUFFER[:24].reshape(3, 8), out=BUFFER.view(np.float16)[:24].reshape(3, 8)),
        ValueError,
        "shares memory",
    ),
    (lambda: critbeta.Rescaling.parse("ssmax"), ValueError, "s is missing"),
    (lambda: critbeta.Rescaling(), TypeError, "Rescaling"),
    (lambda: critbeta.Family.parse("edges"), ValueError, 'unknown name "edges"; expected simplex'),
    (lambda: critbeta.Family.parse("gaussian").draw(2**60), MemoryError, "no memory"),
    (lambda: critbeta.Family.parse("gaussian").draw(-1), ValueError, "n is -1: expected 0 to"),
    (
        lambda: critbeta.Family.parse("gaussian").draw(1, seed=2**64),
        ValueError,
        "seed is 18446744073709551616: expected 0",
    ),
    (lambda: SU.beta(-1), ValueError, "n is -1: expected 0 to"),
    (lambda: SU.beta(1, position=-1), ValueError, "position is -1: expected 0 to"),
    (lambda: SU.betas(np.array([-1]), np.array([0])), ValueError, "n: -1 of row 0, expected 0 or more"),
    (
        lambda: SU.betas(np.array([1]), np.array([-2])),
        ValueError,
        "positions: -2 of row 0, expected 0 or more",
    ),
    (lambda: stats(X).entropie, AttributeError, "no column 'entropie', but layer, head"),
    (lambda: stats(X).certified, AttributeError, "certified"),
    (lambda: stats(X).to_parquet("/nowhere/rows.parquet"), FileNotFoundError, "/nowhere/rows.parquet"),
    (lambda: stats(X).to_parquet(b"rows.parquet"), TypeError, "path is bytes: expected text or os.PathLike"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_arguments_that_do_not_fit_are_refused_with_their_numbers(case):
    given, exception, message = REFUSED[case]
    with pytest.raises(exception, match=message) as found:
        given()
    assert type(found.value) is exception
