"""All results against the float64 reference in reference.py."""

import math

import critbeta
import numpy as np
import pytest
from reference import ULP, assert_probabilities, gaps_of, lambda_of, partition, reference, rows, softmax

# Rows here have gaps of any size, of which `stats` warns.
pytestmark = pytest.mark.filterwarnings("ignore:scores:UserWarning")

LENGTHS = [1, 2, 3, 17, 257, 4096]
RESOLVES = [0.0, 0.69, 3.0]


def same_beta(found, expected):
    return found == expected or abs(found / expected - 1) <= 2.0**-22


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("resolve", RESOLVES)
def test_every_row_of_a_block_is_the_references(n, resolve):
    named = rows(n)
    block = np.stack(list(named.values()))
    stats = critbeta.stats(block, resolve=resolve)
    assert stats.shape == (len(named),) and len(stats) == len(named)
    betas = critbeta.critical_beta(block, resolve=resolve)
    for r, (name, row) in enumerate(named.items()):
        case = f"{name}, n = {n}, r = {resolve}"
        known = reference(row, resolve)
        exact = (stats.n[r], stats.max[r], stats.argmax[r], stats.ties[r])
        assert exact == (known.n, known.max, known.argmax, known.ties), case
        assert same_beta(stats.critical_beta[r], known.critical_beta), case
        assert same_beta(stats.resolved_beta[r], known.resolved_beta), case
        assert betas[r] == stats.resolved_beta[r], case
        # The witness by hand: rank scores lie within the gap, and log rank / gap is the critical beta.
        gap, rank = stats.contact_gap[r], stats.contact_rank[r]
        assert np.count_nonzero(known.gaps <= gap) == rank, case
        if 0 < known.critical_beta < math.inf:
            assert same_beta(math.log(rank) / gap, known.critical_beta), case
        else:
            assert gap == 0, case
        alpha = math.log(rank) / math.log(known.n) if known.n > 1 and rank > 1 else 0
        assert stats.alpha[r] == pytest.approx(alpha, rel=1e-14), case


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 40.0])
def test_weights_and_entropies_are_the_references(beta):
    for n in LENGTHS:
        named = rows(n, seed=3)
        stats = critbeta.stats(np.stack(list(named.values())), beta=beta)
        for r, (name, row) in enumerate(named.items()):
            case = f"{name}, n = {n}, beta = {beta}"
            gaps, _ = gaps_of(row)
            if len(gaps) == 0:
                for column in ["beta", "ratio", "log_partition", "entropy", "top_two", "max_weight"]:
                    assert getattr(stats, column)[r] == 0, case
                continue
            weights = np.sort(softmax(row, beta)[0][row > -np.inf])[::-1]
            positive = weights[weights > 0]
            entropy = -math.fsum(positive * np.log(positive))
            close = dict(rel=1e-11, abs=1e-12)
            assert stats.log_partition[r] == pytest.approx(math.log(partition(gaps, beta)), **close), case
            assert stats.entropy[r] == pytest.approx(entropy, rel=1e-9, abs=1e-11), case
            assert stats.max_weight[r] == pytest.approx(weights[0], **close), case
            second = weights[1] if len(weights) > 1 else 0
            assert stats.top_two[r] == pytest.approx(weights[0] - second, **close), case
            assert stats.beta[r] == beta
            if stats.critical_beta[r] not in (0, math.inf):
                assert stats.ratio[r] == beta / stats.critical_beta[r]


@pytest.mark.parametrize("n", LENGTHS)
def test_probabilities_are_within_their_bound(n):
    named = rows(n, seed=5)
    block = np.stack(list(named.values()))
    specs = {
        "identity": lambda row: 1.0,
        "fixed:0": lambda row: 0.0,
        "fixed:2.5": lambda row: 2.5,
        "su": lambda row: math.log(max(len(gaps_of(row)[0]), 1)) / math.log(512),
        "critical:ratio=1,cap=1000": lambda row: min(reference(row).critical_beta, 1000.0),
        "critical:ratio=1": lambda row: reference(row).critical_beta,
        "critical:ratio=2,resolve=0.69,floor=0.5": lambda row: max(
            2 * lambda_of(*gaps_of(row), 0.69), 0.5
        ),
    }
    for spec, beta_of in specs.items():
        probabilities, stats = critbeta.softmax(block, spec, return_stats=True)
        assert probabilities.dtype == np.float32 and probabilities.shape == block.shape
        for r, (name, row) in enumerate(named.items()):
            case = f"{spec}, {name}, n = {n}"
            assert stats.beta[r] == pytest.approx(beta_of(row), rel=2.0**-22), case
            # The bound holds at the beta that it chose.
            assert_probabilities(probabilities[r], row, stats.beta[r])
            gaps, _ = gaps_of(row)
            log_partition = math.log(partition(gaps, stats.beta[r])) if len(gaps) else -math.inf
            assert stats.log_partition[r] == pytest.approx(log_partition, abs=4 * ULP), case


def test_the_default_is_the_critical_rescaling():
    row = rows(300)["spiky"]
    assert critbeta.softmax(row).tobytes() == critbeta.softmax(row, "critical:ratio=1").tobytes()
    assert critbeta.softmax(row).tobytes() != critbeta.softmax(row, "identity").tobytes()


@pytest.mark.parametrize("n", LENGTHS)
def test_gap_counts_are_the_references(n):
    for name, row in rows(n, seed=7).items():
        found = critbeta.gap_count(row)
        gaps, counts = gaps_of(row)
        assert np.array_equal(found.gaps, gaps) and np.array_equal(found.counts, counts), name
        usable = (found.gaps > 0) & (found.gaps < np.inf)
        if len(counts) > 1 and counts[0] == 1 and usable.any():
            by_hand = (np.log(found.counts[usable]) / found.gaps[usable]).max()
            assert same_beta(critbeta.critical_beta(row), by_hand), name


def test_the_k_largest_scores_are_counted_and_certified():
    named = rows(4096)
    block = np.stack(list(named.values()))
    full, some = critbeta.stats(block), critbeta.stats(block, top_k=64)
    assert "certified" not in full.names and some.names[-2:] == ["certified", "resolved_certified"]
    assert some.certified.dtype == bool
    proven = some.certified
    assert np.array_equal(some.critical_beta[proven], full.critical_beta[proven])
    assert (some.critical_beta <= full.critical_beta).all()
    names = list(named)
    # With a sink the contact lies deep in the bulk; in a Gaussian row it lies near the top.
    assert not proven[names.index("sink")] and proven[names.index("normal")]


def test_float64_rows_keep_their_gaps_at_any_offset():
    rng = np.random.default_rng(1)
    wide = rng.standard_normal((4, 1000))
    wide[1] += 1e9
    wide[2, 7] = -1e38
    wide[3, :500] = -np.inf
    stats = critbeta.stats(wide)
    with np.errstate(over="ignore"):
        rebased = np.maximum(wide - wide.max(-1, keepdims=True), np.finfo(np.float32).min / 2)
    narrow = np.where(wide == -np.inf, wide, rebased).astype(np.float32)
    assert np.array_equal(stats.critical_beta, critbeta.critical_beta(narrow))
    assert np.array_equal(stats.max, wide.max(-1)) and np.array_equal(stats.n, (wide > -np.inf).sum(-1))
    probabilities, row_stats = critbeta.softmax(wide, "identity", return_stats=True)
    assert np.array_equal(row_stats.max, wide.max(-1)) and np.array_equal(row_stats.argmax, wide.argmax(-1))
    for found, row in zip(probabilities, narrow):
        assert_probabilities(found, row, 1.0)
    # Scores behind the length of a row have no effect, not even on the offset.
    wide[:, 900:] = 1e300
    lens = critbeta.critical_beta(wide[:, :900])
    assert np.array_equal(critbeta.stats(wide, lens=900).critical_beta, lens)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.nan])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_poison_stays_in_its_row(poison, dtype):
    block = np.stack(list(rows(100).values())[:3]).astype(dtype)
    clean = critbeta.stats(block)
    block[1, 40] = poison
    stats = critbeta.stats(block)
    probabilities, row_stats = critbeta.softmax(block, return_stats=True)
    assert list(stats.poisoned) == list(row_stats.poisoned) == [False, True, False]
    for name in ["max", "critical_beta", "alpha", "log_partition", "entropy", "top_two"]:
        column = getattr(stats, name)
        assert np.isnan(column[1]) and np.array_equal(column[::2], getattr(clean, name)[::2]), name
    assert stats.argmax[1] == 40 and np.isnan(row_stats.beta[1])
    assert np.isnan(probabilities[1]).all() and not np.isnan(probabilities[::2]).any()
    assert np.isnan(critbeta.critical_beta(block)[1])
    with pytest.raises(ValueError, match="NaN or"):
        critbeta.gap_count(block[1])
