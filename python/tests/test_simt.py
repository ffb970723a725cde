"""The CUDA side of the package against its CPU side, without a GPU: tensors in CPU memory, and the crate's simulator in the place of the
driver. Needs a build with `--features simt` (scripts/python-test.sh makes one); CRITBETA_REQUIRE_SIMT=1 turns the skip into a failure.
"""

import math
import os

import critbeta
import numpy as np
import pytest
from reference import rows

torch = pytest.importorskip("torch")
import critbeta.torch  # noqa: E402
from critbeta import _core, _cuda  # noqa: E402

try:
    SIMULATED = _core.Engine.simulated("sm_90")
except RuntimeError as error:
    if os.environ.get("CRITBETA_REQUIRE_SIMT"):
        raise
    pytest.skip(str(error), allow_module_level=True)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SPECS = ["identity", "fixed:1.3", "su", "qwen-logn:train=100", "velickovic", "critical:ratio=1", "critical:resolve=0.69,cap=8",
         "calibrated:c=0.5,xi=0.7,anchor=300"]


@pytest.fixture(autouse=True)
def simulator(monkeypatch):
    monkeypatch.setattr(_cuda, "engine", lambda device: SIMULATED)
    monkeypatch.setattr(_cuda, "stream", lambda device: 0)


@pytest.fixture
def launched(monkeypatch):
    """From here on tensors are launched over, not computed on the CPU."""
    return lambda: monkeypatch.setattr(critbeta.torch, "_is_launched", lambda scores: scores.numel() > 0)


def block(n, dtype=torch.float32):
    named = dict(list(rows(n).items())[:-1])
    named["poisoned"] = named["normal"].copy()
    named["poisoned"][n // 2] = np.nan
    return torch.from_numpy(np.stack(list(named.values()))).to(dtype)


def assert_columns(found, expected):
    for name in expected._fields:
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype and one.shape == other.shape, name
        if name in ("n", "max", "argmax", "ties", "poisoned"):
            assert torch.equal(one.nan_to_num(7e30), other.nan_to_num(7e30)), name
        else:
            torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-6, equal_nan=True, msg=name)


def assert_probabilities_agree(found, expected, dtype):
    """Both are within (4 + z) 2^-23 of float64, z up to 100 where the smallest float32 begins, and a rounding of their own."""
    rounding = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    smallest = {torch.float32: 2.0**-126, torch.float16: 2.0**-23, torch.bfloat16: 2.0**-126}[dtype]
    torch.testing.assert_close(found, expected, rtol=104 * 2.0**-22 + rounding, atol=smallest, equal_nan=True)


@pytest.mark.parametrize("spec", SPECS)
def test_softmax_is_the_cpus(spec, launched):
    for n, dtype in [(700, torch.float32), (3000, torch.float16), (33, torch.bfloat16)]:
        scores = block(n, dtype)
        expected, columns = critbeta.softmax(scores, spec, return_stats=True)
        launched()
        found, told = critbeta.softmax(scores, spec, return_stats=True)
        assert found.dtype == dtype and found.shape == scores.shape
        assert_columns(told, columns)
        assert_probabilities_agree(found, expected, dtype)
        assert torch.equal(critbeta.softmax(scores, spec).nan_to_num(7), found.nan_to_num(7))


def test_lens_and_positions_are_followed(launched):
    scores = torch.randn(2, 3, 50)
    lens, positions = torch.tensor([[0, 1, 20], [50, 7, 3]]), torch.tensor([4, 9, 99])
    given = dict(rescaling="qwen-logn:train=10", lens=lens, positions=positions, return_stats=True)
    expected, columns = critbeta.softmax(scores, **given)
    launched()
    for kind in (torch.int64, torch.int32, torch.uint8):
        given.update(lens=lens.to(kind), positions=positions.to(kind))
        found, told = critbeta.softmax(scores, **given)
        assert_columns(told, columns)
        assert_probabilities_agree(found, expected, torch.float32)
        assert not found[0, 0].any()
    # Numbers, and what is beyond what the kernels read: nobody can look at it before the launch.
    assert torch.equal(critbeta.softmax(scores, lens=20), critbeta.softmax(scores[..., :20].contiguous(), out=None).new_tensor(
        np.pad(critbeta.softmax(scores[..., :20]).numpy(), [(0, 0), (0, 0), (0, 30)])))
    assert torch.equal(critbeta.softmax(scores, lens=[99, 50, -3])[:, :2], critbeta.softmax(scores)[:, :2])
    beta = critbeta.softmax(scores, "qwen-logn:train=10", positions=2**32 - 2, return_stats=True)[1].beta
    assert torch.allclose(beta, torch.tensor(32 * math.log(2) / math.log(10), dtype=torch.float64))


@pytest.mark.parametrize("resolve", [0.0, 0.69, 3.0])
def test_critical_betas_are_the_cpus(resolve, launched):
    for n, dtype in [(700, torch.float32), (300, torch.float16), (33, torch.bfloat16), (1, torch.float32)]:
        scores = block(n, dtype) if n > 2 else torch.randn(4, 1)
        expected = critbeta.critical_beta(scores, resolve)
        launched()
        # One logarithm of the device, of a few ulp in float64.
        torch.testing.assert_close(critbeta.critical_beta(scores, resolve), expected, rtol=2.0**-50, atol=0.0, equal_nan=True)


@pytest.mark.parametrize(("resolve", "top_k"), [(0.0, None), (0.69, None), (0.69, 16)])
def test_stats_are_the_cpus(resolve, top_k):
    scores = block(600).reshape(1, 13, 600)
    lens = torch.arange(588, 601)
    for lens in (None, lens):
        expected = critbeta.stats(scores, lens=lens, resolve=resolve, top_k=top_k, beta=0.7)
        found = _cuda.stats(scores, lens, resolve, 0.7, top_k)
        assert found.names == expected.names and found.shape == (1, 13)
        for name in expected.names:
            one, other = getattr(found, name), getattr(expected, name)
            if name in ("log_partition", "entropy", "top_two", "max_weight"):
                assert np.allclose(one, other, rtol=2e-6, atol=1e-6, equal_nan=True), name
            else:
                assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), name


def test_rows_apart_are_not_copied_and_others_are(launched):
    wide = torch.randn(6, 100)
    views = [wide[:, 10:70], wide[::2, :60], wide.T, wide[:, ::2], wide[0].expand(6, 100), wide[3:4, 5:65], wide[:, 17:18], wide[2]]
    expected = [critbeta.softmax(view, "su") for view in views]
    launched()
    for view, of_cpu in zip(views, expected):
        assert_probabilities_agree(critbeta.softmax(view, "su"), of_cpu, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_out_is_written_and_may_be_scores(dtype, launched):
    scores = block(400, dtype)
    expected = critbeta.softmax(scores, out=torch.empty_like(scores))
    launched()
    out = torch.full_like(scores, 7)
    assert critbeta.softmax(scores, out=out) is out
    assert_probabilities_agree(out, expected, dtype)
    wide = torch.empty(scores.shape)
    assert critbeta.softmax(scores, out=wide, return_stats=True)[1].n.shape == (13,)
    assert_probabilities_agree(wide.to(dtype), expected, dtype)
    assert critbeta.softmax(scores, out=scores) is scores
    assert torch.equal(scores.nan_to_num(7), out.nan_to_num(7))
    for wrong, told in [(scores[:, :399], "out of shape"), (scores.new_empty(400, 13).T, "expected contiguous")]:
        with pytest.raises(ValueError, match=told):
            critbeta.softmax(scores, out=wrong)
    memory = torch.randn(1000)
    with pytest.raises(ValueError, match=r"launch over 1 rows x 500 columns: scores .* overlap"):
        critbeta.softmax(memory[:500], out=memory[4:504])
    if dtype == torch.float32:
        with pytest.raises(ValueError, match="probabilities as f16: expected f32"):
            critbeta.softmax(scores, out=scores.half())


def test_few_long_rows_take_a_workspace(launched):
    scores = torch.randn(2, 70_000)
    assert SIMULATED.workspace_bytes(2, 70_000, "f32", True) > 0
    expected = critbeta.softmax(scores)
    launched()
    assert_probabilities_agree(critbeta.softmax(scores), expected, torch.float32)


def test_gradients_are_the_cpus(launched):
    gradient = lambda s: torch.autograd.grad((critbeta.softmax(s, "fixed:2") ** 2).sum(), s)[0]  # noqa: E731
    scores = torch.randn(3, 60, requires_grad=True)
    expected = gradient(scores)
    launched()
    torch.testing.assert_close(gradient(scores), expected)


def test_what_the_kernels_refuse_is_told(launched):
    launched()
    with pytest.raises(ValueError, match=r"launch over 1 rows x 16777217 columns: expected 1 to 16777216"):
        critbeta.softmax(torch.zeros(2**24 + 1))
    assert critbeta.softmax(torch.zeros(3, 0)).shape == (3, 0)
    assert critbeta.critical_beta(torch.zeros(0, 4)).shape == (0,)
