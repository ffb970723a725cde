"""`critbeta.measure` on keys in pages on a device, against the CPU path: on a GPU or the simulator
(`device.py`)."""

import math

import critbeta
import device
import numpy as np
import pytest
from device import HAS_GPU, Device
from paged import Q_LENS, Case

torch = pytest.importorskip("torch")
from critbeta import _core, _cuda  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

OPS = torch.ops.critbeta
pytestmark = pytest.mark.filterwarnings("default")
F16, BF16 = torch.float16, torch.bfloat16
DTYPES = [torch.float32, F16, BF16]
RULE = "critical:ratio=1.3,resolve=0.69,cap=20"
# What the kernels compute by the exponential of the device and sums of float32.
SUMS = ("log_partition", "entropy", "top_two", "max_weight")


def whole(dtype, **kinds):
    """A case whose products have the same sum in any order: queries and keys are multiples of 1/4."""
    case = drawn(dtype, **kinds)
    case.q, case.k = ((4 * array).round() / 4 for array in (case.q, case.k))
    return case


def drawn(dtype, **kinds):
    """A case whose arrays are tensors of a dtype."""
    case = Case(**kinds)
    for name in ("q", "k", "v"):
        setattr(case, name, torch.from_numpy(getattr(case, name)).to(dtype))
    case.tables, case.lens, case.q_lens = map(torch.from_numpy, (case.tables, case.lens, case.q_lens))
    return case


def given(case, k=None):
    return [case.q, case.k if k is None else k, case.tables, case.lens]


def on_device(put, case, k=None, **options):
    options = case.options | options
    return critbeta.measure(*map(put, given(case, k)), **options)


def assert_same(found, expected, but=SUMS):
    assert found.names == expected.names and found.shape == expected.shape
    for name in expected.names:
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype, name
        if name in but:
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6, err_msg=name)
        else:
            assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), name


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", ["identity", "su", RULE])
def test_columns_are_the_cpus(rule, dtype, layout):
    case = whole(dtype, layout=layout)
    for options in ({}, {"resolve": 0.69}, {"window": 20, "scale": 0.25, "resolve": 0.3}):
        expected = critbeta.measure(*given(case), **case.options, rescaling=rule, **options)
        with Device() as put:
            found = on_device(put, case, rescaling=rule, **options)
        assert_same(found, expected)
        assert found.n.min() == 0 and found.n.max() == min(90, options.get("window", 90))


def test_f32_scores_have_the_cpus_bits():
    for kinds in ({}, {"page": 1, "group": 1}, {"page": 3, "group": 5}, {"page": 64, "group": 8}):
        case = drawn(torch.float32, **kinds)
        expected = critbeta.measure(*given(case), **case.options, rescaling=RULE)
        with Device() as put:
            assert_same(on_device(put, case, rescaling=RULE), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_scores_are_within_their_rounding(dtype, softcap):
    case = drawn(dtype)
    options = dict(softcap=softcap, rescaling=RULE, resolve=0.69)
    expected = critbeta.measure(*given(case), **case.options, **options)
    with Device() as put:
        found = on_device(put, case, **options)
    for name in ("n", "position", "head", "row", "poisoned"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    # (dim + 8) 2^-23 of the sum of |q k|, below 64 * 30 here, times 1 / 8.
    np.testing.assert_allclose(found.max, expected.max, rtol=0, atol=72 * 2.0**-23 * 240)
    for name in ("beta", "critical_beta", "resolved_beta", "log_partition", "entropy"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("rule", ["velickovic", "fixed:0.5", "qwen-logn:train=9", "calibrated:c=0.5,xi=0.7"])
def test_rules_that_measure_nothing_or_the_entropy(rule):
    case = whole(BF16)
    expected = critbeta.measure(*given(case), **case.options, rescaling=rule)
    with Device() as put:
        found = on_device(put, case, rescaling=rule)
    # Powers and entropies of the device differ in the last bits.
    assert_same(found, expected, (*SUMS, "beta", "ratio"))
    np.testing.assert_allclose(found.beta, expected.beta, rtol=2e-7 if rule == "velickovic" else 2.0**-50)


class Recorder:
    """Passes calls on to an engine, and keeps those of launches."""

    def __init__(self, engine):
        self.engine, self.calls = engine, []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def launch_measure(self, *call):
        self.calls.append(call)
        return self.engine.launch_measure(*call)


@pytest.mark.skipif(HAS_GPU, reason="it looks at the calls of the simulator")
@pytest.mark.parametrize("view", ["interleaved", "in layers"])
def test_pages_of_any_strides_are_read_where_they_lie(view):
    case, recorder = whole(F16), Recorder(device.SIMULATED)
    expected = critbeta.measure(*given(case), **case.options, rescaling=RULE)
    memory = torch.stack([case.k, case.v], 2) if view == "interleaved" else torch.cat([case.k, case.v], 1)
    k = memory[:, :, 0] if view == "interleaved" else memory[:, : case.page]
    assert not k.is_contiguous()
    with Device(recorder):
        q, _, *sequences = given(case)
        assert_same(critbeta.measure(q, k, *sequences, **case.options, rescaling=RULE), expected)
    # The rule has one resolve and the columns another, and one launch reports both.
    (call,) = recorder.calls
    _, queries, keys, table, *_ = call
    assert keys[0] == k.data_ptr() and keys[3] == list(k.stride()) and keys[1] == "f16"
    assert queries[0] == q.data_ptr() and table[0] == sequences[0].data_ptr()


def test_queries_tables_and_lengths_of_other_strides_and_dtypes():
    case = whole(F16)
    expected = critbeta.measure(*given(case), **case.options, rescaling=RULE)
    q, k, tables, lens = given(case)
    with Device() as put:
        on = put(k)
        apart = put(torch.zeros(len(q), q.shape[1], 65, dtype=q.dtype))[..., 1:].copy_(q)
        wide = torch.cat([tables, tables], 1)[:, : tables.shape[1]]
        every = torch.stack([tables, tables], 2)[..., 0]
        for queries in (apart, put(q).transpose(0, 1).contiguous().transpose(0, 1)):
            for table in (wide, every, tables.long(), tables.short()):
                for lengths in (lens.int(), lens.to(torch.uint8), lens.tolist()):
                    lengths = lengths if isinstance(lengths, list) else put(lengths)
                    options = dict(q_lens=Q_LENS, rescaling=RULE)
                    table = table.cuda() if HAS_GPU else table
                    assert_same(critbeta.measure(queries, on, table, lengths, **options), expected)


def test_one_token_a_sequence_needs_no_lengths_of_queries():
    case = whole(BF16, lens=[3, 40, 0], q_lens=[1, 1, 1])
    del case.options["q_lens"]
    expected = critbeta.measure(*given(case), rescaling=RULE)
    with Device() as put:
        assert_same(on_device(put, case, rescaling=RULE), expected)
        q, k, tables, lens = map(put, given(case))
        with pytest.raises(ValueError, match="q of 2 tokens: expected one for each of 3 sequences, or q_lens"):
            critbeta.measure(q[:2], k, tables, lens)


@pytest.mark.parametrize(
    "rules",
    [
        ["critical:cap=9"] * 3 + ["su"] * 3,
        ["identity", "critical:resolve=1,cap=5", "fixed:2", "su", "su", "critical"],
        ["su"] + ["critical:cap=2"] * 5,
        ["critical:cap=2"] * 5 + ["su"],
    ],
    ids=["of key heads", "all other", "into a key head", "out of a key head"],
)
def test_each_head_may_have_a_rule_of_its_own(rules):
    case = whole(BF16)
    expected = critbeta.measure(*given(case), **case.options, rescaling=rules, resolve=0.5)
    with Device() as put:
        assert_same(on_device(put, case, rescaling=rules, resolve=0.5), expected)
        q, k, tables, lens = map(put, given(case))
        arguments = None, rules, "NHD", None, None, 0.5
        beta, critical = OPS.measure(q, k, tables, None, lens, put(case.q_lens), *arguments)
    assert np.array_equal(beta.cpu().numpy(), expected.beta)
    np.testing.assert_allclose(critical.cpu().numpy(), expected.critical_beta, rtol=2.0**-50)


def arguments(put, case, rule, resolve=0.0, lens=None, q_lens=None, tables=None):
    q, k, table, lengths = given(case)
    words = [table if tables is None else tables, None, lengths if lens is None else lens]
    words.append(case.q_lens if q_lens is None else q_lens)
    words = [word if word is None else put(word) for word in words]
    return put(q), put(k), *words, None, [rule], case.layout, None, None, resolve


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", ["su", "critical:cap=8", RULE])
def test_the_operator_returns_beta_and_critical_beta_on_the_device(rule, dtype):
    case = whole(dtype)
    expected = OPS.measure(*arguments(lambda of: of, case, rule, 0.3))
    with Device() as put:
        found = OPS.measure(*arguments(put, case, rule, 0.3))
        for one, other in zip(found, expected):
            assert one.dtype == torch.float64 and one.is_cuda == HAS_GPU
            torch.testing.assert_close(one.cpu(), other, rtol=2.0**-50, atol=0, equal_nan=True)
        q, k, *others = arguments(put, case, rule)
        torch.library.opcheck(OPS.measure.default, (q, k.nan_to_num(), *others))


def test_what_only_the_device_holds_poisons_its_own_rows():
    case = whole(BF16, lens=[40, 17, 90, 5], q_lens=[1, 2, 1, 3])
    sound = OPS.measure(*arguments(lambda of: of, case, RULE))
    lens, tables = case.lens, case.tables
    wrong, other = lens.clone(), tables.clone()
    wrong[0], wrong[2] = -1, 10_000
    other[1, 1] = len(case.k)
    with Device() as put:
        for kind in (torch.int32, torch.int64):
            found = OPS.measure(*arguments(put, case, RULE, lens=wrong.to(kind), tables=other.to(kind)))
            for one, expected in zip(found, sound):
                assert one[[0, 2, 3]].isnan().all(), kind
                torch.testing.assert_close(one[[1, 4, 5, 6]].cpu(), expected[[1, 4, 5, 6]])
        # int32 does not hold them, and they must not become a length that is right.
        found = OPS.measure(*arguments(put, case, RULE, lens=lens.long() + 2**32))
        assert found[0].isnan().all()
        for counts in ([1, 9, 1, 3], [1, -1, 1, 3], [1, 2, 3, 4]):
            found = OPS.measure(*arguments(put, case, RULE, q_lens=torch.tensor(counts)))
            assert all(column.isnan().all() for column in found), counts
        columns = critbeta.measure(*map(put, given(case)[:2]), put(other), put(lens), q_lens=[1, 2, 1, 3])
    assert columns.poisoned.any(1).tolist() == [False, False, True, False, False, False, False]


def test_tokens_behind_the_last_are_empty_rows():
    case = whole(BF16)
    case.q = torch.cat([case.q, case.q[:3]])
    with Device() as put:
        beta, critical = OPS.measure(*arguments(put, case, "critical:ratio=1,floor=0.5,cap=8"))
    assert (beta[-3:] == 0).all() and (critical[-3:] == 0).all()
    assert (beta[1:-3] >= 0.5).all() and beta.isfinite().all()


def test_nan_keys_poison_the_rows_that_see_them():
    case = whole(BF16)
    k = case.k.clone()
    k[case.tables[4, 5], 4, 1] = torch.nan
    expected = critbeta.measure(*given(case, k), **case.options)
    with Device() as put:
        found = on_device(put, case, k)
    assert_same(found, expected)
    assert found.poisoned.sum() == 3 * 6 and np.isnan(found.beta[found.poisoned]).all()


def test_a_workspace_is_shared_with_other_launches():
    case, long = whole(BF16), torch.randn(2, 220_000)
    with Device() as put:
        first = on_device(put, case, rescaling=RULE)
        probabilities = critbeta.softmax(put(long))
        assert_same(on_device(put, case, rescaling=RULE), first, ())
        assert torch.equal(critbeta.softmax(put(long)), probabilities)


def test_empty_batches():
    case = whole(BF16)
    with Device() as put:
        q, k, tables, lens = map(put, given(case))
        none = critbeta.measure(q[:0], k, tables[:0], lens[:0])
        assert none.shape == (0, 6) and len(none) == 0
        none = critbeta.measure(q[:0], k, tables, lens, q_lens=[0] * 5, rescaling=["su"] * 5 + ["critical"])
        assert none.beta.shape == (0, 6)
        rest = arguments(put, case, "su")[6:]
        beta, critical = OPS.measure(q[:0], k, tables[:0], None, lens[:0], None, *rest)
        assert beta.shape == critical.shape == (0, 6)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"q": lambda q: q.float()}, NotImplementedError, "q is torch.float32 and k_pages is torch.bfloat16"),
        ({"block_tables": lambda t: (t[0], t[1])}, NotImplementedError, r"of shapes \(8,\) and \(8,\)"),
        ({"top_k": lambda _: 9}, NotImplementedError, "top_k is 9: expected None"),
        ({"resolve": lambda _: -1.0}, ValueError, "resolve is -1.0: expected a finite number"),
        ({"resolve": lambda _: math.nan}, ValueError, "resolve is nan"),
        ({"rescaling": lambda _: ["su"] * 5}, ValueError, "5 rescalings: expected one for all, or one for each"),
        ({"rescaling": lambda _: "soft"}, ValueError, "soft"),
        ({"q": lambda q: q[:, :0]}, ValueError, "expected at least one head"),
        ({"q": lambda q: q[:, :5]}, ValueError, "expected 2 kv_heads to divide 5 heads"),
        ({"q": lambda q: q[1:]}, ValueError, "q of 12 tokens: the sequences have 13 in all"),
        ({"lens": lambda n: n[1:]}, ValueError, r"lens of shape \(4,\): expected one number for each of 5"),
        ({"lens": lambda n: n - 1}, ValueError, "lens: -1 of sequence 0, expected 0 to 128"),
        ({"lens": lambda n: n + 99}, ValueError, "lens: 189 of sequence 4, expected 0 to 128"),
        ({"lens": lambda n: n.float()}, TypeError, "lens is torch.float32: expected integers"),
        ({"q_lens": lambda n: n + 1}, ValueError, "q_lens: 9 of sequence 4, expected 0 to 8"),
        ({"q_lens": lambda n: n[:2]}, ValueError, r"q_lens of shape \(2,\): expected one number for each of 5"),
        ({"block_tables": lambda t: t[0]}, ValueError, r"block_tables of shape \(8,\): expected \[seqs, blocks\]"),
        ({"k_pages": lambda k: k[..., 4:]}, ValueError, "expected one head_dim, found 64 and 60"),
        ({"k_pages": lambda k: k.numpy(force=True)}, TypeError, "k_pages is ndarray, q a tensor"),
        ({"window": lambda _: 0}, ValueError, "window 0, expected at least 1"),
        ({"scale": lambda _: math.inf}, ValueError, "scale inf, expected a finite number"),
        ({"softcap": lambda _: -1.0}, ValueError, "softcap -1, expected a finite number above 0"),
        ({"layout": lambda _: "HDN"}, ValueError, "layout 'HDN': expected 'NHD'"),
    ],
)
def test_what_is_not_measured_is_refused(change, kind, message):
    case = whole(BF16)
    if "k_pages" in change and kind is TypeError:
        case = whole(F16)
    with Device() as put:
        names = "q", "k_pages", "block_tables", "lens"
        options = dict(zip(names, map(put, given(case)))) | {"q_lens": put(case.q_lens)}
        for name, edit in change.items():
            options[name] = edit(options.get(name))
        with pytest.raises(kind, match=message):
            critbeta.measure(**options)


def test_strides_that_the_kernels_do_not_read_are_refused_with_their_numbers():
    case = whole(BF16)
    with Device() as put:
        q, k, tables, lens = map(put, given(case))
        wide = torch.zeros(*k.shape[:3], 68, dtype=k.dtype, device=k.device)
        for pages, message in [
            (wide[..., :64], "keys with a stride of 68 elements from head to head, expected a multiple of 8"),
            (wide[..., 1:65], "keys with a stride of 68"),
            (wide.view(-1)[1 : 1 + k.numel()].view(k.shape), "keys at .* are not aligned to 16 bytes"),
            (k.transpose(1, 3).contiguous().transpose(1, 3), "keys with a stride of 1 elements from slot"),
        ]:
            with pytest.raises(ValueError, match=f"launch over 78 rows x 90 columns: {message}"):
                critbeta.measure(q, pages, tables, lens, q_lens=Q_LENS)


def test_a_graph_that_is_captured_needs_int32(monkeypatch):
    case = whole(BF16)
    with Device() as put:
        right = arguments(put, case, "su", lens=case.lens.int(), q_lens=case.q_lens.int())
        wide = arguments(put, case, "su")
        monkeypatch.setattr(_cuda, "is_capturing", lambda device: True)
        if not HAS_GPU:
            assert OPS.measure(*right)[0].isfinite().all()
        with pytest.raises(ValueError, match="lens is torch.int64: a CUDA graph that is captured needs int32"):
            OPS.measure(*wide)


def test_fake_tensors_on_a_gpu_have_shapes_and_errors():
    case = whole(BF16)
    with FakeTensorMode():
        fake = [torch.empty(of.shape, dtype=of.dtype, device="cuda") for of in given(case)]
        q, k, tables, lens = fake
        rest = None, ["su"], "NHD", None, None, 0.0
        beta, critical = OPS.measure(q, k, tables, None, lens, None, *rest)
        assert beta.shape == critical.shape == (len(case.q), 6) and beta.device.type == "cuda"
        assert beta.dtype == critical.dtype == torch.float64
        with pytest.raises(NotImplementedError, match="q is torch.float32 and k_pages is torch.bfloat16"):
            OPS.measure(q.float(), k, tables, None, lens, None, *rest)
        with pytest.raises(NotImplementedError, match=r"expected \[seqs, blocks\]; the kernels for GPUs"):
            OPS.measure(q, k, lens, lens, lens, None, *rest)
        with pytest.raises(ValueError, match="lens of shape .* is on cpu, and q on cuda:0: expected one device"):
            OPS.measure(q, k, tables, None, torch.empty(5, dtype=torch.int64), None, *rest)
        with pytest.raises(ValueError, match="q of shape .* is (a FakeTensor|on meta)"):
            critbeta.measure(q, k, tables, lens)


def test_no_cpu_path_hides(monkeypatch):
    case = whole(BF16)

    def refuses(*_given):
        raise AssertionError("the CPU path ran")

    monkeypatch.setattr(_core, "measure", refuses)
    with Device() as put:
        assert on_device(put, case).n.max() == 90
        assert OPS.measure(*arguments(put, case, "su"))[0].isfinite().all()
    with pytest.raises(AssertionError, match="the CPU path ran"):
        critbeta.measure(*given(case), **case.options)
