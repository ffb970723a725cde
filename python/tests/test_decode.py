"""`critbeta.decode` and `critbeta.measure` against attention in NumPy, float64, row by row."""

import critbeta
import numpy as np
import pytest
from paged import KV_HEADS, PAGE, Q_LENS, Case, D, in_layers, interleaved

torch = pytest.importorskip("torch")
ml_dtypes = pytest.importorskip("ml_dtypes")
BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float16), BF16]
ROUNDING = {"float32": 2.0**-23, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def close(found, expected, dtype):
    # Values are of order 1: their sums are rounded in float32, and once to the dtype of the output.
    rounding = 0.0 if dtype == np.float32 else ROUNDING[dtype.name]
    assert found.shape == expected.shape and found.dtype == dtype
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=rounding, atol=2e-5)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 5}, {"softcap": 1.5}, {"scale": 0.3, "window": 20}],
    ids=["", "window", "softcap", "both"],
)
def test_it_is_attention(dtype, layout, options):
    case = Case(dtype=dtype, layout=layout)
    close(critbeta.decode(*case.given, **case.options, **options), case.expected(**options), dtype)


@pytest.mark.parametrize(("group", "page", "dv"), [(1, 1, 64), (5, 3, 72), (8, 64, 128)])
def test_groups_pages_and_values_of_other_sizes(group, page, dv):
    case = Case(group=group, page=page, dv=dv)
    close(critbeta.decode(*case.given, **case.options), case.expected(), case.q.dtype)


def test_one_token_a_sequence_needs_no_lengths_of_queries():
    case = Case(lens=[3, 40, 0], q_lens=[1, 1, 1])
    close(critbeta.decode(*case.given), case.expected(), case.q.dtype)


def transposed(case):
    # vLLM's cache of keys on CPUs: [.., head_dim, block].
    k, v = (np.ascontiguousarray(pool.transpose(0, 2, 3, 1)) for pool in (case.k, case.v))
    return k.transpose(0, 3, 1, 2), v.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("view", [interleaved, transposed, in_layers])
def test_views_with_any_strides_give_the_same_bits_as_numpy_and_as_tensors(view, dtype):
    case = Case(dtype=dtype)
    dense = critbeta.decode(*case.given, **case.options)
    k, v = view(case)
    assert not k.flags.c_contiguous and np.shares_memory(k[3:], k)
    found = critbeta.decode(case.q, k, v, case.tables, case.lens, **case.options)
    assert np.array_equal(found.view(np.uint8), dense.view(np.uint8))
    as_tensors = critbeta.decode(tensor(case.q), tensor(k), tensor(v), case.tables, case.lens, **case.options)
    assert np.array_equal(bits(as_tensors), bits(tensor(dense)))
    transposed_q = np.ascontiguousarray(case.q.swapaxes(0, 1)).swapaxes(0, 1)
    found = critbeta.decode(transposed_q, k, v, case.tables, case.lens, **case.options)
    assert np.array_equal(found.view(np.uint8), dense.view(np.uint8))


def tensor(array):
    if array.dtype == BF16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def bits(found):
    return found.view(torch.int16 if found.element_size() == 2 else torch.int32).numpy()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_tensors_and_arrays_have_the_same_bits(dtype):
    case = Case(dtype=dtype)
    options = dict(case.options, rescaling="fixed:3", eps=0.3, return_stats=True, window=60)
    found, row_stats = critbeta.decode(*case.given, **options)
    tensors, columns = critbeta.decode(*map(tensor, case.given), **options)
    assert type(found) is np.ndarray and tensors.dtype == tensor(found).dtype
    assert np.array_equal(bits(tensors), bits(tensor(found)))
    assert row_stats._fields == columns._fields == critbeta.DecodeStats._fields
    for name, column in row_stats._asdict().items():
        assert column.shape == case.q.shape[:2]
        assert np.array_equal(column, getattr(columns, name).numpy(), equal_nan=True), name
    assert (row_stats.dropped > 0).any()
    into = torch.empty(tensors.shape, dtype=tensors.dtype)
    written, _ = critbeta.decode(*map(tensor, case.given), **options, out=into)
    assert written is into and np.array_equal(bits(into), bits(tensors))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_an_output_is_written_in_place_in_any_dtype(dtype):
    case = Case()
    plain = critbeta.decode(*case.given, **case.options)
    out = np.empty(plain.shape, dtype)
    assert critbeta.decode(*case.given, **case.options, out=out) is out
    assert np.array_equal(out.view(np.uint8), plain.astype(dtype).view(np.uint8))
    into = torch.empty(plain.shape)
    assert critbeta.decode(*case.given, **case.options, out=into) is into
    assert np.array_equal(into.numpy(), plain)


@pytest.mark.parametrize("blocks", ["int64", "ragged", "strided", "list"])
def test_block_tables_of_every_kind(blocks):
    case = Case()
    expected = critbeta.decode(*case.given, **case.options)
    tables = {
        "int64": case.tables.astype(np.int64),
        "strided": np.repeat(case.tables, 2, axis=1)[:, ::2],
        "list": case.tables.tolist(),
    }
    used = -(-case.lens // PAGE)
    indptr = np.concatenate([[0], np.cumsum(used)]).astype(np.int32)
    tables["ragged"] = indptr, np.concatenate([row[:n] for row, n in zip(case.tables, used)])
    given = case.q, case.k, case.v, tables[blocks]
    for lens in (case.lens, case.lens.tolist(), torch.from_numpy(case.lens), case.lens.astype(np.uint8)):
        assert np.array_equal(critbeta.decode(*given, lens, **case.options), expected)
    tensors = map(tensor, given[:3])
    assert np.array_equal(
        critbeta.decode(*tensors, tables[blocks], case.lens, **case.options).numpy(), expected
    )


def test_what_no_sequence_uses_is_never_read_and_a_poisoned_key_poisons_its_rows_only():
    case = Case()
    clean, plain = critbeta.decode(*case.given, **case.options, return_stats=True)
    assert np.isfinite(clean).all() and np.isfinite(plain.lse[1:]).all() and (plain.lse[0] == -np.inf).all()
    # Key 84 of the last sequence in kv head 1. Its token i sees 83 + i keys.
    k = case.k.copy()
    k[case.tables[4, 84 // PAGE], 84 % PAGE, 1] = np.inf
    found, row_stats = critbeta.decode(case.q, k, *case.given[2:], **case.options, return_stats=True)
    poisoned = np.zeros(case.q.shape[:2], bool)
    poisoned[sum(Q_LENS[:4]) + 2 :, 3:] = True
    assert np.array_equal(np.isnan(found), np.broadcast_to(poisoned[..., None], found.shape))
    for column in ("beta", "critical_beta", "lse", "bound"):
        assert np.array_equal(np.isnan(getattr(row_stats, column)), poisoned), column


@pytest.mark.parametrize("eps", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("shifted", [False, True])
def test_what_is_dropped_is_within_eps_and_the_bound_holds(eps, shifted):
    case = Case(lens=[2000, 900], q_lens=[2, 1], group=3)
    centre = np.full((KV_HEADS, D), 0.25, np.float32) if shifted else None
    away = np.where(np.isnan(case.v), 0.0, case.v - 0.25 * shifted).astype(np.float64)
    radius = np.linalg.norm(away, axis=-1).max(1).astype(np.float32)
    options = dict(case.options, rescaling="fixed:4", eps=eps, centre=centre, return_stats=True)
    found, row_stats = critbeta.decode(*case.given, **options, v_radius=np.nextafter(radius, np.float32(99)))
    assert (row_stats.dropped <= eps).all() and (row_stats.dropped > 0).any()
    assert (row_stats.dropped * 2.0**32 % 1 == 0).all() and row_stats.kept.dtype == np.int64
    assert (row_stats.kept[:2] < 1999).all() and (row_stats.kept > 0).all()
    apart = np.linalg.norm(found - case.expected(beta=lambda scores: 4.0), axis=-1)
    assert (apart <= row_stats.bound + 1e-5).all() and (apart > 0.01 * row_stats.bound).any()
    again, without = critbeta.decode(*case.given, **options)
    assert np.array_equal(again, found) and np.isnan(without.bound[without.dropped > 0]).all()


@pytest.mark.parametrize("rule", ["identity", "fixed:1.7", "ssmax:s=0.43", "critical:resolve=0.69,cap=8"])
def test_columns_are_those_of_stats_on_the_same_scores(rule):
    case = Case(lens=[300, 5], q_lens=[3, 1], group=2)
    parsed = critbeta.Rescaling.parse(rule)
    out, found = critbeta.decode(*case.given, **case.options, rescaling=rule, return_stats=True)
    measured = critbeta.measure(
        case.q, *case.given[1:2], *case.given[3:], **case.options, rescaling=parsed, resolve=0.69
    )
    assert measured.shape == case.q.shape[:2] and measured.resolved_beta.shape == case.q.shape[:2]
    for token, head, scores, values in case.rows():
        row = critbeta.stats(scores.astype(np.float32), resolve=0.69)
        at = token, head
        np.testing.assert_allclose(found.critical_beta[at], row.critical_beta, rtol=1e-3)
        np.testing.assert_allclose(measured.resolved_beta[at], row.resolved_beta, rtol=1e-3)
        position = case.lens[0] - 3 + token if token < 3 else case.lens[1] - 1
        assert measured.n[at] == row.n and measured.head[at] == head and measured.row[at] == token
        assert measured.position[at] == position
        beta = parsed.beta(len(scores), int(position), critical=float(row.resolved_beta))
        np.testing.assert_allclose(found.beta[at], beta, rtol=1e-3)
        lse = np.logaddexp.reduce(found.beta[at] * scores)
        np.testing.assert_allclose(found.lse[at], lse, rtol=1e-4, atol=1e-4)
        weights = np.exp(found.beta[at] * scores - lse)
        np.testing.assert_allclose(out[at], weights @ values, atol=1e-4)
        np.testing.assert_allclose(
            measured.entropy[at], -(weights * np.log(weights)).sum(), rtol=1e-3, atol=1e-3
        )
    assert np.array_equal(measured.beta, found.beta) and np.array_equal(
        measured.critical_beta, found.critical_beta
    )
    assert not found.dropped.any() and not found.bound.any() and np.array_equal(found.kept, measured.n)


def test_each_head_may_have_a_rule_of_its_own():
    case = Case()
    rules = ["fixed:0.5", critbeta.Rescaling.parse("identity"), "fixed:2", "su", "critical", "fixed:0"]
    found = critbeta.decode(*case.given, **case.options, rescaling=rules)
    tensors = critbeta.decode(*map(tensor, case.given), **case.options, rescaling=tuple(rules))
    for head, rule in enumerate(rules):
        alone = critbeta.decode(*case.given, **case.options, rescaling=rule)
        assert np.array_equal(found[:, head], alone[:, head])
    assert np.array_equal(tensors.numpy(), found)


def test_measured_rows_make_a_report_and_a_calibration(tmp_path):
    case = Case(lens=[300, 40], q_lens=[3, 1], group=2)
    for rule in ("identity", "fixed:2", "su"):
        measured = critbeta.measure(case.q, case.k, case.tables, case.lens, **case.options, rescaling=rule)
        critbeta.report(measured, tmp_path / "report.html")
    measured.to_calibration(tmp_path / "cal.json")
    measured.to_parquet(tmp_path / "rows.parquet")
    assert "layer" in measured.to_pandas() and set(measured.layer.ravel()) == {"attention"}
    counted = critbeta.measure(case.q, case.k, case.tables, case.lens, **case.options, top_k=9)
    assert counted.certified.shape == case.q.shape[:2]
    file = f"calibrated:{tmp_path / 'cal.json'}"
    with pytest.raises(ValueError, match="a file holds one law per head.*list of one rule per query head"):
        critbeta.decode(*case.given, **case.options, rescaling=file)


def test_empty_batches():
    case = Case()
    none = critbeta.decode(case.q[:0], case.k, case.v, case.tables[:0], case.lens[:0])
    assert none.shape == (0, 6, D)
    _, row_stats = critbeta.decode(
        case.q[:0], case.k, case.v, case.tables, case.lens, q_lens=[0] * 5, return_stats=True
    )
    assert row_stats.beta.shape == (0, 6)


def test_nonsense_is_answered_alike_or_refused_for_arrays_and_tensors():
    rng = np.random.default_rng(1)
    pick = lambda *of: of[rng.integers(len(of))]  # noqa: E731
    answered = refused = 0
    for _ in range(600):
        kv, d, pages, seqs, blocks = pick(1, 2), pick(64, 72), pick(1, 4, 9), pick(0, 1, 3), pick(0, 1, 3)
        layout, dtype, page = pick("NHD", "HND"), pick(np.float32, np.float16), pick(1, 3, 16)
        order = (pages, page, kv) if layout == "NHD" else (pages, kv, page)
        q_lens = rng.integers(0, 4, seqs)
        q = rng.standard_normal((int(q_lens.sum()), kv * pick(1, 2, 3, 5), d)).astype(dtype)
        k, v = (rng.standard_normal((*order, pick(d, d, d, 64))).astype(dtype) for _ in range(2))
        k = np.broadcast_to(k[:1], k.shape) if pick(*range(8)) == 0 else k[:, :, :: pick(1, 1, 1, 2)]
        v = np.where(rng.random(v.shape) < pick(0, 0, 0.001), pick(np.nan, np.inf), v).astype(dtype)
        tables = rng.integers(pick(0, 0, -1), pages + pick(0, 0, 1), (seqs, blocks))
        if pick(True, False):
            tables = np.arange(seqs + 1) * blocks, tables.ravel()
        lens = rng.integers(0, max(blocks * page, 1) + pick(0, 0, 9), seqs)
        rule = pick(
            "identity", "critical", "su", "velickovic", "fixed:0", "fixed:1e300", "critical:resolve=1e308"
        )
        options = dict(q_lens=pick(q_lens, q_lens, q_lens, None), layout=layout, rescaling=rule)
        options |= dict(window=pick(None, None, 1, 2**63), softcap=pick(None, None, 1e-300, 1e300))
        eps = pick(0, 1e-300, np.float32(0.3), 0.999)
        options |= dict(scale=pick(None, None, 0, -1, 1e300))
        try:
            found, row_stats = critbeta.decode(q, k, v, tables, lens, **options, eps=eps, return_stats=True)
        except ValueError:
            with pytest.raises(ValueError):
                critbeta.decode(*map(tensor, (q, k.copy(), v)), tables, lens, **options, eps=eps)
            refused += 1
            continue
        answered += 1
        tensors = critbeta.decode(*map(tensor, (q, k.copy(), v)), tables, lens, **options, eps=eps)
        assert np.array_equal(bits(tensors), bits(tensor(found)))
        measured = critbeta.measure(q, k, tables, lens, **options)
        assert np.array_equal(measured.critical_beta, row_stats.critical_beta, equal_nan=True)
        assert (row_stats.dropped <= eps).all() and (row_stats.kept <= measured.n).all()
    assert answered > 100 and refused > 100


def test_bfloat16_of_numpy_is_that_of_ml_dtypes():
    case = Case(dtype=BF16)
    assert critbeta.decode(*case.given, **case.options).dtype == BF16
    with pytest.raises(TypeError, match="k_pages is dtype.'uint16'"):
        critbeta.decode(case.q, case.k.view(np.uint16), *case.given[2:], **case.options)
