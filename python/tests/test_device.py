"""The CUDA side of the package against its CPU side, on a GPU or on the simulator (`device.py`)."""

import math
import subprocess
import sys

import critbeta
import numpy as np
import pytest
from reference import rows

torch = pytest.importorskip("torch")
import device  # noqa: E402
from device import HAS_GPU, Device  # noqa: E402

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SPECS = [
    "identity",
    "fixed:1.3",
    "su",
    "qwen-logn:train=100",
    "velickovic",
    "critical:ratio=1",
    "critical:resolve=0.69,cap=8",
    "calibrated:c=0.5,xi=0.7,anchor=300",
]


def block(n, dtype=torch.float32):
    named = dict(list(rows(n).items())[:-1])
    named["poisoned"] = named["normal"].copy()
    named["poisoned"][n // 2] = np.nan
    return torch.from_numpy(np.stack(list(named.values()))).to(dtype)


def assert_columns(found, expected):
    for name in expected._fields:
        one, other = getattr(found, name).cpu(), getattr(expected, name)
        assert one.dtype == other.dtype and one.shape == other.shape, name
        if name in ("n", "max", "argmax", "ties", "poisoned"):
            assert torch.equal(one.nan_to_num(7e30), other.nan_to_num(7e30)), name
        else:
            torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-6, equal_nan=True, msg=name)


def assert_probabilities_agree(found, expected, dtype):
    """Both are within (4 + z) 2^-23 of float64, z up to 100 at the smallest float32, and their rounding."""
    rounding = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    smallest = {torch.float32: 2.0**-126, torch.float16: 2.0**-23, torch.bfloat16: 2.0**-126}[dtype]
    relative = 104 * 2.0**-22 + rounding
    torch.testing.assert_close(found.cpu(), expected, rtol=relative, atol=smallest, equal_nan=True)


@pytest.mark.parametrize("spec", SPECS)
def test_softmax_is_the_cpus(spec):
    for n, dtype in [(700, torch.float32), (3000, torch.float16), (33, torch.bfloat16)]:
        scores = block(n, dtype)
        expected, columns = critbeta.softmax(scores, spec, return_stats=True)
        with Device() as put:
            found, row_stats = critbeta.softmax(put(scores), spec, return_stats=True)
            again = critbeta.softmax(put(scores), spec)
        assert found.dtype == dtype and found.shape == scores.shape
        assert torch.equal(again.nan_to_num(7), found.nan_to_num(7))
        assert_columns(row_stats, columns)
        assert_probabilities_agree(found, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite_masks_are_masks(dtype):
    scores = block(300, dtype)
    scores[:, 100:250:2] = torch.finfo(dtype).min
    scores[1:3, 200:] = torch.finfo(dtype).min * 0.75
    scores[-1] = torch.finfo(dtype).min
    plain = scores.masked_fill(scores < torch.finfo(dtype).min / 2, -torch.inf)
    with Device() as put:
        for spec in SPECS:
            found, row_stats = critbeta.softmax(put(scores), spec, return_stats=True)
            expected, columns = critbeta.softmax(put(plain), spec, return_stats=True)
            assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7)), spec
            assert_columns(row_stats, columns)
        found, expected = critbeta.stats(put(scores)), critbeta.stats(put(plain))
        assert np.array_equal(found.n, expected.n) and np.array_equal(found.position, expected.position)


def test_lens_and_positions_are_followed():
    scores, rule = torch.randn(2, 3, 50), "qwen-logn:train=10"
    lens, positions = torch.tensor([[0, 1, 20], [50, 7, 3]]), torch.tensor([4, 9, 99])
    expected, columns = critbeta.softmax(scores, rule, lens=lens, positions=positions, return_stats=True)
    short, whole = critbeta.softmax(scores, rule, lens=20), critbeta.softmax(scores, rule)
    with Device() as put:
        on = put(scores)
        for kind in (torch.int64, torch.int32, torch.uint8):
            given = dict(lens=put(lens.to(kind)), positions=put(positions.to(kind)))
            found, row_stats = critbeta.softmax(on, rule, return_stats=True, **given)
            assert_columns(row_stats, columns)
            assert_probabilities_agree(found, expected, torch.float32)
            assert not found[0, 0].any()
        assert_probabilities_agree(critbeta.softmax(on, rule, lens=20), short, torch.float32)
        # The launch cannot check a length: it clamps a length beyond the row to its end.
        found = critbeta.softmax(on, rule, lens=[99, 50, -3])
        assert_probabilities_agree(found[:, :2], whole[:, :2], torch.float32)
        assert not found[:, 2].any()
        beta = critbeta.softmax(on, rule, positions=2**32 - 2, return_stats=True)[1].beta
    assert torch.allclose(beta.cpu(), torch.tensor(math.log(2**32 - 1) / math.log(10), dtype=torch.float64))


@pytest.mark.parametrize("resolve", [0.0, 0.69, 3.0])
def test_critical_betas_are_the_cpus(resolve):
    for n, dtype in [(700, torch.float32), (300, torch.float16), (33, torch.bfloat16), (1, torch.float32)]:
        scores = block(n, dtype) if n > 2 else torch.randn(4, 1)
        expected = critbeta.critical_beta(scores, resolve)
        with Device() as put:
            found = critbeta.critical_beta(put(scores), resolve)
        # They differ by one logarithm of the device, a few ulp in float64.
        torch.testing.assert_close(found.cpu(), expected, rtol=2.0**-50, atol=0.0, equal_nan=True)


@pytest.mark.parametrize(("resolve", "top_k"), [(0.0, None), (0.69, None), (0.69, 16)])
def test_stats_are_the_cpus(resolve, top_k):
    scores = block(600).reshape(1, 13, 600)
    for lens in (None, torch.arange(588, 601)):
        expected = critbeta.stats(scores, lens=lens, resolve=resolve, top_k=top_k, beta=0.7)
        with Device() as put:
            on = None if lens is None else put(lens)
            found = critbeta.stats(put(scores), lens=on, resolve=resolve, top_k=top_k, beta=0.7)
        assert found.names == expected.names and found.shape == (1, 13)
        for name in expected.names:
            one, other = getattr(found, name), getattr(expected, name)
            if name in ("log_partition", "entropy", "top_two", "max_weight"):
                assert np.allclose(one, other, rtol=2e-6, atol=1e-6, equal_nan=True), name
            else:
                assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), name


def test_rows_of_any_strides():
    wide = torch.randn(6, 100)
    views = [
        *(lambda s: s[:, 10:70], lambda s: s[::2, :60], lambda s: s.T, lambda s: s[:, ::2]),
        *(lambda s: s[0].expand(6, 100), lambda s: s[3:4, 5:65], lambda s: s[:, 17:18], lambda s: s[2]),
    ]
    expected = [critbeta.softmax(view(wide), "su") for view in views]
    with Device() as put:
        found = [critbeta.softmax(view(put(wide)), "su") for view in views]
    for one, other in zip(found, expected):
        assert_probabilities_agree(one, other, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_out_is_written_and_may_be_scores(dtype):
    scores = block(400, dtype)
    expected = critbeta.softmax(scores, out=torch.empty_like(scores))
    with Device() as put:
        on = put(scores)
        out, wide = torch.full_like(on, 7), torch.full_like(on, 7, dtype=torch.float32)
        assert critbeta.softmax(on, out=out) is out
        assert critbeta.softmax(on, out=wide, return_stats=True)[1].n.shape == (13,)
        assert critbeta.softmax(on, out=on) is on
        transposed = out.new_empty(400, 13).T
        for wrong, message in [(out[:, :399], "out of shape"), (transposed, "expected contiguous")]:
            with pytest.raises(ValueError, match=message):
                critbeta.softmax(put(scores), out=wrong)
    assert_probabilities_agree(out, expected, dtype)
    assert_probabilities_agree(wide.to(dtype), expected, dtype)
    assert torch.equal(on.nan_to_num(7), out.nan_to_num(7))


def test_the_kernels_refuse_with_an_error():
    with Device() as put:
        memory = put(torch.randn(1000))
        with pytest.raises(ValueError, match=r"launch over 1 rows x 500 columns: scores .* overlap"):
            critbeta.softmax(memory[:500], out=memory[4:504])
        with pytest.raises(ValueError, match="probabilities as f16: expected f32"):
            critbeta.softmax(memory, out=memory.half())
        message = "launch over 1 rows x 16777217 columns: expected 1 to 16777216"
        with pytest.raises(ValueError, match=message):
            critbeta.softmax(put(torch.zeros(2**24 + 1)))
        with pytest.raises(ValueError, match="resolve must be finite and at least 0"):
            critbeta.critical_beta(memory, -1.0)
        # There is nothing to launch.
        assert critbeta.softmax(put(torch.zeros(3, 0))).shape == (3, 0)
        assert critbeta.critical_beta(put(torch.zeros(0, 4))).shape == (0,)
        assert critbeta.softmax(memory, "identity").sum().item() == pytest.approx(1.0, rel=1e-5)


def test_few_long_rows_take_a_workspace():
    scores = torch.randn(2, 220_000)
    expected = critbeta.softmax(scores)
    with Device() as put:
        assert HAS_GPU or device.SIMULATED.workspace_bytes(2, 220_000, "f32", True) > 0
        found = critbeta.softmax(put(scores))
    assert_probabilities_agree(found, expected, torch.float32)


def test_gradients_are_the_cpus():
    def gradient(scores):
        scores.requires_grad_()
        return torch.autograd.grad((critbeta.softmax(scores, "fixed:2") ** 2).sum(), scores)[0]

    scores = torch.randn(3, 60)
    expected = gradient(scores.clone())
    with Device() as put:
        found = gradient(put(scores))
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.skipif(HAS_GPU, reason="test_cuda.py forks with a GPU")
def test_a_forked_child_gets_an_error_from_its_engine():
    code = """
import os, signal, sys
from critbeta import _core
engine = _core.Engine.simulated("sm_90")
child = os.fork()
if child == 0:
    signal.alarm(60)
    try:
        rule = _core.Rescaling.parse("identity")
        engine.launch(0, (4, "f32"), [1, 1, 1], None, None, rule, None, None, None, 0.0, None, False, False)
    except RuntimeError as error:
        os._exit(0 if "does not survive its fork" in str(error) and "spawn" in str(error) else 2)
    os._exit(1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120).returncode == 0
