"""torch tensors: the result is a tensor of the same dtype and device, and no input is copied."""

import subprocess
import sys

import critbeta
import numpy as np
import pytest
from reference import assert_probabilities, rows

torch = pytest.importorskip("torch")
import critbeta.torch  # noqa: E402

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float64: 0.0}


def drawn(*shape, dtype=torch.float32, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_in_gives_a_tensor_out(dtype):
    scores = drawn(3, 4, 500, dtype=dtype)
    wide = scores.float().numpy() if dtype != torch.float64 else scores.numpy()
    found, row_stats = critbeta.softmax(scores, return_stats=True)
    assert isinstance(found, torch.Tensor) and found.is_contiguous()
    assert found.dtype == dtype and found.shape == scores.shape
    expected, columns = critbeta.softmax(wide, return_stats=True)
    rounded = torch.from_numpy(expected).to(dtype)
    assert np.array_equal(found.double(), rounded.double()) or dtype == torch.bfloat16
    for name in columns._fields:
        column = getattr(row_stats, name)
        assert isinstance(column, torch.Tensor) and column.shape == (3, 4) and not column.requires_grad, name
        assert np.array_equal(column, getattr(columns, name)), name
    beta = critbeta.critical_beta(scores, 0.69)
    assert beta.dtype == torch.float64 and np.array_equal(beta, critbeta.critical_beta(wide, 0.69))
    block, _ = critbeta._arrays.rows(scores, "scores")
    assert block.__array_interface__["data"][0] == scores.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES)
def test_probabilities_are_rounded_once(dtype):
    for name, row in rows(600).items():
        scores = torch.from_numpy(row).to(dtype)
        if torch.isfinite(scores).any() and not scores.isposinf().any():
            found = critbeta.softmax(scores, "fixed:1.3")
            assert_probabilities(found.double().numpy(), scores.float().numpy(), 1.3, ROUNDING[dtype])


def test_strides_and_shapes():
    wide = drawn(6, 100)
    for view in [
        wide[:, 10:70],
        wide[::2, :60],
        wide.T,
        wide[:, ::2],
        wide[0].expand(6, 100),
        wide[3],
        wide[:0],
        wide[:, :0],
    ]:
        found = critbeta.softmax(view, "su")
        assert found.shape == view.shape and torch.equal(found, critbeta.softmax(view.contiguous(), "su"))
    assert critbeta.softmax(wide.to("meta")).shape == (6, 100) and critbeta.critical_beta(wide[0]).shape == ()


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_out_is_a_tensor(dtype):
    row = rows(600)["spiky"]
    scores, out = torch.from_numpy(row), torch.zeros(600, dtype=dtype)
    version = out._version
    assert critbeta.softmax(scores, "identity", out=out) is out and out._version > version
    assert_probabilities(out.float().numpy(), row, 1.0, ROUNDING[dtype])
    same = out.clone()
    expected = critbeta.softmax(same, "identity", out=torch.empty_like(same))
    found, row_stats = critbeta.softmax(same, "identity", out=same, return_stats=True)
    assert found is same and torch.equal(same, expected) and row_stats.n == 600
    # NumPy arrays and tensors mix if all are on the CPU.
    array = np.zeros(600, np.float32)
    assert critbeta.softmax(scores, "identity", out=array) is array
    assert critbeta.softmax(row, "identity", out=out) is out


def test_lens_and_positions_are_anything_that_holds_integers():
    scores = drawn(2, 3, 8)
    assert critbeta.stats(scores, lens=torch.tensor([1, 2, 8])).n.tolist() == [[1, 2, 8]] * 2
    rows = [[5], [7]]
    for lens in (rows, np.array(rows, np.uint8), np.array(rows, ">i8"), torch.tensor(rows).int()):
        found, row_stats = critbeta.softmax(scores, lens=lens, return_stats=True)
        assert row_stats.n.tolist() == [[5] * 3, [7] * 3] and not found[0, :, 5:].any()
    assert not critbeta.softmax(scores, lens=0).any()
    for positions in (99, torch.tensor(99), np.int64(99), [99, 99, 99]):
        beta = critbeta.softmax(scores, "qwen-logn:train=10", positions=positions, return_stats=True)[1].beta
        assert torch.allclose(beta, torch.tensor(2.0, dtype=torch.float64))


def test_queries_and_keys_are_tensors():
    q, k = drawn(1, 4, 20, 16, dtype=torch.bfloat16), drawn(1, 2, 30, 16, dtype=torch.bfloat16, seed=2)
    found = critbeta.diagnose(q=q, k=k).rows
    expected = critbeta.diagnose(q=q.float().numpy(), k=k.float().numpy()).rows
    assert found.shape == (4, 20) and np.array_equal(found.critical_beta, expected.critical_beta)


X = torch.zeros(3, 8)
NEGATED = torch.randn(3, 8, dtype=torch.cfloat).conj().imag
softmax = critbeta.softmax
REFUSED = [
    (lambda: softmax(torch.tensor(1.0)), ValueError, r"scores of shape \(\): expected \[\.\.\., n\]"),
    (lambda: softmax(X.long()), TypeError, r"scores of shape \(3, 8\) are torch.int64: expected float32"),
    (
        lambda: softmax(X.to_sparse()),
        ValueError,
        r"torch.sparse_coo: expected a dense tensor, pass scores\.to_dense",
    ),
    (lambda: softmax(X, "ssmax"), ValueError, "s is missing"),
    (lambda: softmax(X, 1.3), TypeError, "rescaling is float"),
    (lambda: softmax(X, out=X[:2].clone()), ValueError, r"out of shape \(2, 8\): expected \(3, 8\)"),
    (lambda: softmax(X, out=X.double()), TypeError, "out is dtype.*expected float32, float16 or bfloat16"),
    (lambda: softmax(X, out=torch.zeros(8, 3).T), ValueError, "C-contiguous"),
    (lambda: softmax(X, out=X.to("meta")), ValueError, r"out is on meta, scores of shape \(3, 8\) on cpu"),
    (
        lambda: softmax(X, lens=torch.tensor([1, 2, 3], device="meta")),
        ValueError,
        "lens is on meta, scores .* on cpu",
    ),
    (
        lambda: softmax(X, lens=torch.tensor([1.0, 2.0, 3.0])),
        TypeError,
        "lens is torch.float32: expected integers",
    ),
    (
        lambda: softmax(X, lens=[1, 2]),
        ValueError,
        r"lens of shape \(2,\): expected one per row, or a shape that broadcasts to \(3,\)",
    ),
    (lambda: softmax(X, lens=9), ValueError, "lens: 9 of row 0, expected 0 to the 8 columns"),
    (lambda: softmax(X, positions=-1), ValueError, "positions: -1 of row 0, expected 0 to 4294967295"),
    (lambda: softmax(X, positions=[True] * 3), TypeError, r"positions is dtype\('bool'\): expected integers"),
    (lambda: softmax(X, lens=[None] * 3), TypeError, r"lens is dtype\('O'\): expected integers"),
    (lambda: softmax(X, lens=["5"] * 3), TypeError, r"lens is dtype\('<U1'\): expected integers"),
    (lambda: softmax(X, positions=2**70), TypeError, r"positions is dtype\('O'\): expected integers"),
    (
        lambda: softmax(X.numpy(), lens=torch.ones(3).bfloat16()),
        TypeError,
        "lens is bfloat16: expected integers",
    ),
    (lambda: critbeta.critical_beta(X, -1.0), ValueError, "resolve must be finite and at least 0"),
    (lambda: critbeta.critical_beta(X.int()), TypeError, "torch.int32"),
    (
        lambda: softmax(X.requires_grad_(False).clone().requires_grad_(), out=X.clone()),
        RuntimeError,
        "automatic differentiation",
    ),
    (lambda: softmax(X.numpy(), out=X.clone().requires_grad_()), ValueError, "out requires gradients"),
    (lambda: softmax(X, out=NEGATED), ValueError, r"out of shape \(3, 8\) is a view of negated memory"),
    (lambda: softmax(X.numpy(), out=NEGATED), ValueError, "negated memory: pass out.resolve_neg"),
]
# Tensors that no function can read: all functions raise the same exception.
UNREADABLE = [
    (X.to("meta"), ValueError, r"of shape \(3, 8\) is on meta: expected data"),
    (X.to_sparse(), ValueError, r"of shape \(3, 8\) are torch.sparse_coo: expected a dense tensor"),
    (
        torch.nested.nested_tensor([X[0], X[0, :3]], layout=torch.jagged),
        ValueError,
        "is a nested tensor: expected a dense one",
    ),
    (X.to(torch.float8_e4m3fn), TypeError, r"float8_e4m3fn( of shape \(3, 8\))?: expected"),
    (X.to(torch.cfloat), TypeError, "complex64.*: expected float32"),
]


@pytest.mark.parametrize("case", range(len(UNREADABLE)))
@pytest.mark.parametrize("name", ["softmax", "critical_beta", "stats", "diagnose", "gap_count"])
def test_all_functions_refuse_the_same_tensors(name, case):
    given, exception, message = UNREADABLE[case]
    if given.is_meta and name in ("softmax", "critical_beta"):
        # These two return the shape of their result.
        assert getattr(critbeta, name)(given).is_meta
        return
    with pytest.raises(exception, match=f"(scores|row) .*{message}") as found:
        getattr(critbeta, name)(given)
    assert type(found.value) is exception


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_arguments_that_do_not_fit_are_refused_with_their_numbers(case):
    given, exception, message = REFUSED[case]
    with pytest.raises(exception, match=message) as found:
        given()
    assert type(found.value) is exception


def test_memory_that_overlaps_is_refused():
    memory = torch.zeros(100)
    with pytest.raises(ValueError, match=r"out shares memory with scores of shape \(50,\)"):
        critbeta.softmax(memory[:50], out=memory[4:54])


def test_the_operators_come_with_the_first_tensor():
    code = """
import sys, warnings
warnings.simplefilter("ignore")
import critbeta
assert "torch" not in sys.modules and "critbeta.torch" not in sys.modules
import torch, numpy
critbeta.softmax(numpy.zeros((2, 3)))
assert "critbeta.torch" not in sys.modules
critbeta.softmax(torch.zeros(3))
print(torch.ops.critbeta.softmax(torch.zeros(2, 4), "identity", None, None)[0].tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{[[0.25] * 4] * 2}\n", done.stderr


@pytest.mark.filterwarnings("ignore:scores:UserWarning")
def test_nonsense_has_the_results_of_arrays():
    rng = np.random.default_rng(1)
    pick = lambda *of: of[rng.integers(len(of))]  # noqa: E731
    answered = refused = 0
    for _ in range(400):
        shape = tuple(pick(0, 1, 2, 3, 7, 33) for _ in range(pick(1, 2, 3)))
        values = rng.standard_normal(shape) * pick(0, 1, 1e30)
        odd = rng.choice([0.0, np.inf, -np.inf, np.nan, 65504.0], size=shape)
        with np.errstate(all="ignore"):
            kind = pick(np.float32, np.float16, np.float64, np.int8)
            scores = np.where(rng.random(shape) < pick(0, 0.5), odd, values).astype(kind)
        scores = scores.swapaxes(0, -1) if pick(True, False) else scores[..., :: pick(1, 2)]
        lead, n = scores.shape[:-1], scores.shape[-1]
        lens = pick(None, 0, n, n + 1, rng.integers(-1, n + 2, size=lead))
        given = dict(lens=lens, positions=pick(None, 0, -1, 2**40, [1, 2]))
        rules = "identity", "critical:resolve=1e308", "fixed:1e300", "grok2:train=1.5", "su", "no such law"
        spec = pick(*rules)
        try:
            expected, columns = critbeta.softmax(scores, spec, return_stats=True, **given)
        except (ValueError, TypeError):
            with pytest.raises((ValueError, TypeError)):
                critbeta.softmax(torch.from_numpy(scores), spec, return_stats=True, **given)
            refused += 1
            continue
        found, row_stats = critbeta.softmax(torch.from_numpy(scores), spec, return_stats=True, **given)
        answered += 1
        if scores.dtype != np.float16:
            assert np.array_equal(found.float().numpy(), expected, equal_nan=True)
        for name in columns._fields:
            with_nan = name in ("beta", "log_partition", "max")
            assert np.array_equal(getattr(row_stats, name), getattr(columns, name), equal_nan=with_nan), name
    assert answered > 50 and refused > 50


def test_a_view_of_negated_memory_has_the_values_that_it_shows():
    dense = NEGATED.resolve_neg()
    assert np.array_equal(critbeta.stats(NEGATED).max, dense.amax(-1).double().numpy())
    assert torch.equal(critbeta.softmax(NEGATED), critbeta.softmax(dense))


def test_statistics_of_a_tensor_that_requires_grad():
    scores = torch.randn(4, 8, requires_grad=True)
    assert np.array_equal(critbeta.stats(scores).critical_beta, critbeta.critical_beta(scores).numpy())
