"""`critbeta.decode` on keys and values in pages on a device, against the CPU path: on a GPU or the simulator
(`device.py`)."""

import critbeta
import numpy as np
import pytest
from device import HAS_GPU, Device
from paged import Q_LENS, Case, D
from test_device_pages import BF16, DTYPES, F16, RULE, drawn, whole

torch = pytest.importorskip("torch")
from critbeta import _cuda  # noqa: E402

OPS = torch.ops.critbeta
pytestmark = pytest.mark.filterwarnings("default")
F32 = torch.float32
COLUMNS = critbeta.DecodeStats._fields
RULES = ["identity", "fixed:1.7", "su", "critical:cap=8", RULE]


def given(case, **changed):
    return [changed.get(name, getattr(case, name)) for name in ("q", "k", "v", "tables", "lens")]


def on_device(put, case, out=None, **options):
    options = case.options | options
    out = {} if out is None else {"out": out}
    return critbeta.decode(*map(put, given(case)), **out, **options)


def largest(case):
    """The largest value of each sequence that its rows can see, as a factor of their errors."""
    return float(case.v.float().nan_to_num().abs().max())


def error_of(dtype):
    # A weight of 16 bits is the sum of two numbers, within 2^-16. f32 has the errors of exponentials and
    # sums, and the CPU has a part of its own.
    return (2.0**-20 if dtype == F32 else 2.0**-15) + 2.0**-20


def assert_close(found, expected, bound):
    found, expected = found.cpu().double(), expected.double()
    assert found.shape == expected.shape and torch.equal(found.isnan(), expected.isnan())
    apart = (found - expected).abs().nan_to_num()
    assert apart.max() <= bound, f"{float(apart.max()):.3g} apart, expected {bound:.3g}"


def assert_same_columns(found, expected, beta=2.0**-50):
    assert found._fields == COLUMNS
    for name, one in found._asdict().items():
        other = getattr(expected, name)
        assert one.dtype == other.dtype and one.is_cuda == HAS_GPU, name
        kinds = {"beta": (beta, 0), "critical_beta": (2.0**-50, 0), "lse": (2e-6, 1e-6)}
        rtol, atol = kinds.get(name, (0, 0))
        torch.testing.assert_close(
            one.cpu(), other, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m: f"{name}: {m}"
        )


def bits(tensor):
    return tensor.cpu().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_outputs_and_columns_are_the_cpus(rule, dtype, layout):
    case = whole(dtype, layout=layout)
    for options in ({}, {"window": 20, "scale": 0.25}):
        options["rescaling"] = rule
        wide = torch.empty(case.q.shape)
        _, columns = critbeta.decode(*given(case), **case.options, **options, out=wide, return_stats=True)
        with Device() as put:
            found, rows = on_device(put, case, **options, return_stats=True)
            plain = on_device(put, case, **options)
            into = put(torch.full(case.q.shape, torch.nan))
            assert on_device(put, case, **options, out=into) is into
        assert_close(into, wide, error_of(dtype) * largest(case))
        # The sums are rounded once.
        assert found.dtype == dtype and torch.equal(bits(found), bits(into.to(dtype)))
        assert torch.equal(bits(plain), bits(found))
        assert_same_columns(rows, columns)
        assert rows.kept.min() == 0 and rows.kept.max() == min(90, options.get("window", 90))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", ["velickovic", "qwen-logn:train=9", "calibrated:c=0.5,xi=0.7"])
def test_rules_whose_betas_differ_in_the_last_bits(rule, dtype):
    case = whole(dtype)
    options = dict(case.options, rescaling=rule, return_stats=True)
    wide = torch.empty(case.q.shape)
    _, columns = critbeta.decode(*given(case), **options, out=wide)
    with Device() as put:
        into = put(torch.empty(case.q.shape))
        _, rows = on_device(put, case, into, **options)
    # The gaps of scores are below 40 here.
    assert_close(into, wide, (error_of(dtype) + 40 * 2e-7) * largest(case))
    assert_same_columns(rows, columns, 2e-7 if rule == "velickovic" else 2.0**-50)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "kinds",
    [
        {"page": 1, "group": 1, "dv": 256},
        {"page": 3, "group": 5, "dv": 72},
        {"page": 64, "group": 8, "dv": 128},
        {"page": 7, "group": 2, "lens": [700, 3, 0], "q_lens": [2, 3, 1], "layout": "HND"},
    ],
    ids=["1", "3", "64", "7"],
)
def test_other_shapes_softcaps_and_scores_are_attention(kinds, dtype):
    case = drawn(dtype, **kinds)
    reference = Case.expected
    for softcap in (None, 3.0):
        exact = Case(**kinds)
        for name in ("q", "k", "v"):
            setattr(exact, name, getattr(case, name).double().numpy())
        expected = torch.from_numpy(reference(exact, softcap=softcap))
        with Device() as put:
            into = put(torch.empty(expected.shape))
            on_device(put, case, into, softcap=softcap)
        # (dim + 8) 2^-23 of the sum of |q k|, below 64 * 30 here, times 1 / 8; of f32 it is less.
        of_scores = 2 * 72 * 2.0**-23 * (240 if dtype != F32 else 60)
        assert_close(into, expected, (error_of(dtype) + of_scores) * largest(case))


@pytest.mark.parametrize(
    "rules",
    [
        ["critical:cap=9"] * 3 + ["su"] * 3,
        ["identity", "critical:resolve=1,cap=5", "fixed:2", "su", "su", "critical:cap=7"],
        ["su"] + ["critical:cap=2"] * 5,
        ["critical:cap=2"] * 5 + ["su"],
    ],
    ids=["of key heads", "all other", "into a key head", "out of a key head"],
)
def test_each_head_may_have_a_rule_of_its_own(rules):
    case = whole(BF16, dv=72)
    wide = torch.empty(*case.q.shape[:2], 72)
    options = dict(case.options, rescaling=rules, return_stats=True)
    _, columns = critbeta.decode(*given(case), **options, out=wide)
    with Device() as put:
        into = put(torch.empty(wide.shape))
        _, rows = on_device(put, case, into, **options)
        alone = torch.stack(
            [on_device(put, case, rescaling=rule)[:, head] for head, rule in enumerate(rules)], 1
        )
        _, some = on_device(put, case, **options, eps=0.05)
    assert_close(into, wide, error_of(BF16) * largest(case))
    assert torch.equal(bits(into.bfloat16()), bits(alone))
    assert_same_columns(rows, columns)
    assert (some.dropped <= 0.05).all() and some.dropped.any()


@pytest.mark.parametrize("rule", ["critical", "fixed:0", "identity"])
def test_ties_of_zeros_have_the_columns_of_the_cpu(rule):
    case = whole(F16)
    # Scores of 0 at beta = inf.
    case.q[2:5] = 0
    options = dict(case.options, rescaling=rule, return_stats=True)
    wide = torch.empty(case.q.shape)
    _, columns = critbeta.decode(*given(case), **options, out=wide)
    with Device() as put:
        into = put(torch.empty(case.q.shape))
        _, rows = on_device(put, case, into, **options)
    assert_close(into, wide, error_of(F16) * largest(case))
    assert_same_columns(rows, columns)
    assert (rows.beta[2:5] == {"critical": np.inf, "fixed:0": 0, "identity": 1}[rule]).all()


def spread(dtype, q_lens=(2, 1, 1, 3), **kinds):
    """A case of which long sequences have keys that do not matter. Those of the short one have equal weights."""
    case = drawn(dtype, lens=[700, 5, 0, 900], q_lens=list(q_lens), **kinds)
    case.q[: q_lens[0]] *= 3
    case.q[sum(q_lens[:1]) : sum(q_lens[:2])] = 0
    return case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eps", [1e-3, 0.05, 0.75])
def test_what_is_dropped_is_within_eps_and_is_what_the_output_lacks(eps, dtype):
    case = spread(dtype)
    with Device() as put:
        into, less = (put(torch.empty(case.q.shape)) for _ in range(2))
        _, all_read = on_device(put, case, into, return_stats=True)
        _, rows = on_device(put, case, less, return_stats=True, eps=eps)
        plain = on_device(put, case, eps=eps)
    assert torch.equal(bits(plain), bits(less.to(dtype)))
    for name in ("beta", "critical_beta", "lse"):
        assert torch.equal(getattr(rows, name), getattr(all_read, name)), name
    dropped, kept = rows.dropped.cpu(), rows.kept.cpu()
    # One pass does not know the row, and leaves less unread than it may.
    assert (dropped <= eps).all() and (dropped[:2] > 0.1 * eps).all() and not dropped[2:4].any()
    assert (dropped * 2.0**32 % 1 == 0).all()
    assert torch.equal(kept == all_read.kept.cpu(), dropped == 0) and (kept[:2] < 650).all()
    assert (kept[:2] > 0).all() and (kept <= all_read.kept.cpu()).all()
    assert torch.equal(rows.bound.cpu().isnan(), dropped > 0) and not rows.bound.nan_to_num().any()
    # What stands for the values that were not read is 0.
    apart = (less - into).abs().amax(-1).cpu().double()
    most = (dropped * (1 + 2.0**-18) + error_of(dtype)) * largest(case)
    assert (apart <= most).all() and (apart[:2] > 1e-3 * eps).any()


def test_what_a_row_left_unread_is_that_of_its_sequence():
    # With and without tokens behind the last, and sequences without tokens between others.
    case = spread(BF16, q_lens=(3, 0, 1, 2))
    starts = np.concatenate([[0], np.cumsum(case.q_lens)])
    padded = torch.cat([case.q, case.q[:2]])
    with Device() as put:
        options = dict(case.options, eps=0.05, return_stats=True)
        q, k, v, tables, lens = map(put, given(case))
        _, rows = critbeta.decode(q, k, v, tables, lens, **options)
        _, more = critbeta.decode(put(padded), k, v, tables, lens, **options)
        assert len({float(dropped) for dropped in rows.dropped[:, 0]}) == 3
        for name in COLUMNS:
            assert torch.equal(getattr(more, name)[:-2].nan_to_num(), getattr(rows, name).nan_to_num()), name
        assert not more.dropped[-2:].any() and not more.kept[-2:].any()
        for seq in (0, 2, 3):
            of = slice(starts[seq], starts[seq + 1])
            options["q_lens"] = [int(case.q_lens[seq])]
            _, alone = critbeta.decode(q[of], k, v, tables[seq : seq + 1], lens[seq : seq + 1], **options)
            for name in COLUMNS:
                assert torch.equal(getattr(rows, name)[of].nan_to_num(), getattr(alone, name).nan_to_num()), (
                    name
                )
        # The second key head alone.
        options["q_lens"] = case.q_lens
        _, last = critbeta.decode(q[:, 3:], k[:, :, 1:], v[:, :, 1:], tables, lens, **options)
        for name in COLUMNS:
            assert torch.equal(getattr(rows, name)[:, 3:].nan_to_num(), getattr(last, name).nan_to_num()), (
                name
            )
        one = case.q[starts[1:] - 1]
        one[1] = 0
        del options["q_lens"]
        _, each = critbeta.decode(put(one), k, v, tables, lens, **options)
        assert (each.dropped[0] > 0).all() and not each.dropped[1:3].any() and (each.dropped[3] > 0).all()


def test_a_share_above_one_half_is_no_negative_number():
    case = drawn(F16, lens=[2000], q_lens=[1])
    case.q[:] = 0.125
    with Device() as put:
        # A beta near 1, and all weights are equal nearly. Only a rule that measures finds them.
        rule = "critical:ratio=0.08"
        _, rows = on_device(put, case, rescaling=rule, eps=0.999, return_stats=True)
    assert (rows.dropped > 0.5).any() and (rows.dropped >= 0).all() and (rows.dropped <= 0.999).all()


@pytest.mark.parametrize("of", ["k", "v"])
@pytest.mark.parametrize("eps", [0.0, 1e-9])
def test_nan_stays_in_the_rows_that_see_it(of, eps):
    case = whole(BF16)
    with Device() as put:
        clean, before = on_device(put, case, eps=eps, return_stats=True)
    # Key 84 of the last sequence in kv head 1. Its token i sees 83 + i keys.
    getattr(case, of)[case.tables[4, 84 // 16], 84 % 16, 1] = torch.nan
    expected, columns = critbeta.decode(*given(case), **case.options, return_stats=True)
    with Device() as put:
        found, rows = on_device(put, case, eps=eps, return_stats=True)
    poisoned = torch.zeros(case.q.shape[:2], dtype=torch.bool)
    poisoned[sum(Q_LENS[:4]) + 2 :, 3:] = True
    assert torch.equal(found.cpu().isnan().any(-1), poisoned) and torch.equal(
        found.cpu().isnan().all(-1), poisoned
    )
    assert torch.equal(expected.isnan().any(-1), poisoned)
    assert torch.equal(bits(found)[~poisoned], bits(clean)[~poisoned])
    if of == "v":
        before = before._replace(bound=rows.bound)
        for name in COLUMNS:
            assert torch.equal(getattr(rows, name), getattr(before, name)), name
    elif eps == 0:
        assert_same_columns(rows, columns)


def operands(put, case, rule="su", eps=0.0, out=None, **changed):
    words = [put(value) for value in (changed.get("tables", case.tables), changed.get("lens", case.lens))]
    q_lens = changed.get("q_lens", case.q_lens)
    tensors = [put(of) for of in (changed.get("q", case.q), case.k, case.v)]
    arguments = *tensors, words[0], None, words[1], None if q_lens is None else put(q_lens)
    rest = None, [rule], eps, case.layout, None, None, None, None
    return (*arguments, *rest) if out is None else (*arguments, *rest, out)


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_what_only_the_device_holds_poisons_its_own_rows(eps):
    case = whole(BF16, lens=[40, 17, 90, 5], q_lens=[1, 2, 1, 3])
    lens, tables = case.lens, case.tables
    wrong, other = lens.clone(), tables.clone()
    wrong[0], wrong[2] = -1, 10_000
    other[1, 1] = len(case.k)
    sound = [1, 4, 5, 6]
    with Device() as put:
        right = OPS.decode_stats(*operands(put, case, eps=eps))
        for kind in (torch.int32, torch.int64):
            found = OPS.decode_stats(
                *operands(put, case, eps=eps, lens=wrong.to(kind), tables=other.to(kind))
            )
            for name, one, expected in zip(("out", *COLUMNS), found, right):
                if one.is_floating_point() and name != "dropped":
                    assert one[[0, 2, 3]].isnan().all(), (name, kind)
                else:
                    assert not one[[0, 2, 3]].any(), (name, kind)
                # Row 1 shares its keys with a row that is poisoned, and so what stays unread.
                same = sound if eps == 0 else sound[1:]
                assert torch.equal(one[same].nan_to_num(), expected[same].nan_to_num()), (name, kind)
            assert (found[0][1] - right[0][1]).abs().max() <= 2 * eps * largest(case)
        # int32 does not hold them, and they must not become a length that is right.
        assert OPS.decode(*operands(put, case, eps=eps, lens=lens.long() + 2**32)).isnan().all()
        for counts in ([1, 9, 1, 3], [1, -1, 1, 3], [1, 2, 3, 4]):
            out, *columns = OPS.decode_stats(*operands(put, case, eps=eps, q_lens=torch.tensor(counts)))
            assert out.isnan().all(), counts
            for name, column in zip(COLUMNS, columns):
                assert column.isnan().all() if column.is_floating_point() else not column.any(), (
                    name,
                    counts,
                )


def test_tokens_behind_the_last_are_empty_rows():
    case = whole(BF16)
    q = torch.cat([case.q, case.q[:3]])
    with Device() as put:
        expected = OPS.decode_stats(*operands(put, case))
        out, *columns = OPS.decode_stats(*operands(put, case, q=q))
        for one, other in zip((out, *columns), expected):
            assert torch.equal(one[:-3], other)
    beta, critical, lse, dropped, kept, bound = (column[-3:].cpu() for column in columns)
    assert not out[-3:].any() and (lse == -torch.inf).all()
    assert not any(column.any() for column in (beta, critical, dropped, kept, bound))


def test_outputs_lie_where_they_may_and_nothing_else_is_written():
    case = whole(F16)
    shape = case.q.shape
    with Device() as put:
        expected = on_device(put, case)
        for dtype in (F16, F32):
            wide = put(torch.full((shape[0], shape[1] + 1, D + 3), 7.0, dtype=dtype))
            out = wide[:, 1:, 1 : D + 1]
            assert on_device(put, case, out) is out
            assert torch.equal(bits(out.to(F16)), bits(expected))
            untouched = wide.clone()
            untouched[:, 1:, 1 : D + 1] = 7
            assert (untouched == 7).all()
            turned = put(torch.empty(shape[1], shape[0], D, dtype=dtype)).transpose(0, 1)
            columns = OPS.decode_stats_out(*operands(put, case, "identity", out=turned))
            assert torch.equal(bits(turned.to(F16)), bits(expected)) and len(columns) == 6
        rules = ["identity"] * 4 + ["fixed:1"] * 2
        out = put(torch.full((shape[0], 8, D), 7.0, dtype=F16))
        on_device(put, case, out[:, 1:7], rescaling=rules)
        assert torch.equal(bits(out[:, 1:7]), bits(expected)) and (out[:, ::7] == 7).all()


def test_a_workspace_holds_anything_behind_its_first_bytes(monkeypatch):
    case, long, cleared = spread(BF16), torch.randn(2, 220_000), []
    zeros = 256 * (64 + 7296) + 4096 * 24 + 255
    monkeypatch.setattr(torch.Tensor, "zero_", lambda of: cleared.append(of.numel()) or of.fill_(0))
    _cuda._of_thread.__dict__.clear()
    with Device() as put:
        on_device(put, case)
        assert cleared == [zeros]
        first, probabilities = on_device(put, case, eps=0.05), critbeta.softmax(put(long))
        for kept in _cuda._of_thread.workspaces.values():
            kept[zeros:].fill_(0xA5)
        assert torch.equal(bits(on_device(put, case, eps=0.05)), bits(first))
        assert torch.equal(critbeta.softmax(put(long)), probabilities)
        assert (
            critbeta.measure(*map(put, (case.q, case.k, case.tables, case.lens)), **case.options).n.max()
            == 900
        )
        assert torch.equal(bits(on_device(put, case, eps=0.05)), bits(first))


def wide_tables(case):
    """The same pages in tables with so much room that a wave has 8 tokens, and there are two."""
    blocks = (40 << 20) // (16 * 4 * case.q.shape[1] * case.page)
    case.tables = torch.nn.functional.pad(case.tables, (0, blocks - case.tables.shape[1]), value=-1)
    return case


def test_many_waves_report_what_each_left_unread():
    case = drawn(BF16, lens=[90, 5, 80], q_lens=[7, 1, 5], group=64)
    with Device() as put:
        into, less = (put(torch.empty(case.q.shape)) for _ in range(2))
        # Only rules that measure have waves of scores.
        rule = "critical:cap=1"
        on_device(put, case, into, rescaling=rule)
        _, rows = on_device(put, wide_tables(case), less, rescaling=rule, eps=0.5, return_stats=True)
    apart = (less - into).abs().amax(-1).cpu().double()
    assert (apart > 0.01)[:8].any()
    assert (apart <= (rows.dropped.cpu() * (1 + 2.0**-18) + error_of(BF16)) * largest(case)).all()


def test_many_waves_of_a_launch_give_the_same_bits():
    case = whole(BF16, group=64)
    with Device() as put:
        expected, columns = on_device(put, case, rescaling=RULE, return_stats=True)
        found, rows = on_device(put, wide_tables(case), rescaling=RULE, return_stats=True)
    assert torch.equal(bits(found), bits(expected))
    for name in COLUMNS:
        assert torch.equal(getattr(rows, name), getattr(columns, name)), name
