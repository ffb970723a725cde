"""Masks that are finite numbers: a score below half of the dtype's lowest number is masked, as -inf is."""

import warnings

import critbeta
import critbeta.torch
import ml_dtypes
import numpy as np
import pytest
import torch

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
SPECS = ["identity", "fixed:0", "ssmax:s=0.43", "velickovic", "critical:ratio=1"]


def pair(dtype, n=70, seed=3):
    """Returns [5, n] scores with finite masks and with -inf. Row 1 is masked whole, row 2 has one key."""
    scores = np.random.default_rng(seed).standard_normal((5, n)).astype(dtype)
    lowest = float(ml_dtypes.finfo(dtype).min)  # in float64 far below the border, which is that of float32
    hidden = np.zeros((5, n), bool)
    hidden[0, n // 2 :] = hidden[1] = hidden[2, 1:] = hidden[3, ::3] = True
    # A model adds the lowest number to a score or a bias.
    masks = np.array([lowest, lowest * 0.75, lowest * 0.53])[np.arange(n) % 3].astype(dtype)
    return np.where(hidden, masks, scores), np.where(hidden, dtype(-np.inf), scores)



@pytest.mark.parametrize("dtype", DTYPES)
def test_every_function_takes_finite_masks_for_masks(dtype):
    masked, plain = pair(dtype)
    assert np.isfinite(masked.astype(np.float64)).all()
    for options in [{}, {"resolve": 0.7}, {"top_k": 8}]:
        one, other = critbeta.stats(masked, **options), critbeta.stats(plain, **options)
        assert other.n.tolist() == [35, 0, 1, 46, 70]
        for name in ["n", "critical_beta", "contact_rank", "entropy", "argmax", "position", "max", "top_two"]:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    np.testing.assert_array_equal(critbeta.critical_beta(masked), critbeta.critical_beta(plain))
    gaps, expected = critbeta.gap_count(masked[3]), critbeta.gap_count(plain[3])
    assert np.array_equal(gaps.gaps, expected.gaps) and len(gaps.gaps) == 46
    for spec in SPECS:
        one, stats = critbeta.softmax(masked, spec, return_stats=True)
        other, expected = critbeta.softmax(plain, spec, return_stats=True)
        assert one.tobytes() == other.tobytes() and not one[1].any(), spec
        assert np.array_equal(stats.beta, expected.beta) and np.array_equal(stats.n, expected.n)
        place = masked.copy()
        if dtype != np.float64:
            assert critbeta.softmax(place, spec, out=place).tobytes() == one.astype(dtype).tobytes()
    found, expected = critbeta.diagnose(masked), critbeta.diagnose(plain)
    assert found.summary["heads"] == expected.summary["heads"] and "notes" not in found.summary
    # A row that is masked by -1e4 is noted.
    low = critbeta.diagnose(np.where(np.isneginf(plain), dtype(-1e4), plain))
    assert "scores more than 1,000 below" in low.summary["notes"][0], low.summary


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_take_finite_masks_for_masks(dtype):
    lowest = torch.finfo(dtype).min
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)).to(dtype)
    causal = torch.ones(4, 50).tril(3).bool()
    masked, plain = scores.masked_fill(~causal, lowest), scores.masked_fill(~causal, -torch.inf)
    for spec in SPECS:
        one, other = (s.clone().requires_grad_() for s in (masked, plain))
        found, expected = critbeta.softmax(one, spec), critbeta.softmax(other, spec)
        assert torch.equal(found, expected), spec
        found.square().sum().backward()
        expected.square().sum().backward()
        assert torch.equal(one.grad, other.grad)
        # The weights are those of torch where it has the same beta.
        if spec == "identity":
            torch.testing.assert_close(found, masked.softmax(-1), rtol=1e-2, atol=1e-3)
    assert torch.equal(critbeta.critical_beta(masked), critbeta.critical_beta(plain))
    assert critbeta.stats(masked).n.tolist() == [4, 5, 6, 7]


@pytest.mark.filterwarnings("ignore:scores")
def test_other_low_numbers_are_scores():
    for low in (-1e9, -1e4, -65504.0, np.finfo(np.float32).min / 2):
        assert critbeta.stats(np.array([low, 1.0, 2.0], np.float32)).n == 3
    assert critbeta.stats(np.array([-32752, 1, 2], np.float16)).n == 3
    assert critbeta.stats(np.array([-32768, 1, 2], np.float16)).n == 2


@pytest.mark.filterwarnings("error")
def test_lists_and_float64_hide_the_masks_of_float32():
    masked, plain = pair(np.float32)
    for wide in (masked.astype(np.float64), masked.tolist()):
        assert critbeta.stats(wide).n.tolist() == critbeta.stats(plain).n.tolist()
        found, expected = (critbeta.softmax(s, "ssmax:s=0.43") for s in (wide, plain.astype(np.float64)))
        assert found.tobytes() == expected.tobytes()


def test_softmax_warns_of_scores_far_below_where_a_law_counts_them():
    row = np.array([[1.0, 0.5, -1e4, -1e9], [1.0, 0.5, 0.25, -np.inf]], np.float32)
    for rule in ("ssmax:s=0.43", "calibrated:c=1.2,xi=0.5"):
        for out in (None, row.copy()):
            with pytest.warns(UserWarning, match="^scores: 1 of 2 rows have scores more than 1,000 below") as found:
                critbeta.softmax(row if out is None else out, rule, out=out)
            assert found[0].filename == __file__
        with pytest.warns(UserWarning, match="1 of 2 rows"):
            critbeta.softmax(row.astype(np.float64), rule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        critbeta.softmax(row, "critical:ratio=1")
        critbeta.softmax(row[1:], "ssmax:s=0.43")


def test_stats_warns_of_scores_that_lie_thousands_below():
    with pytest.warns(UserWarning, match="1 of 2 rows have scores more than 1,000 below"):
        critbeta.stats(np.array([[-1e9, 1.0, 2.0], [0.0, 1.0, 2.0]], np.float32))
