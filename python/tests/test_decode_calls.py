"""`critbeta.decode` and `measure` inside torch, and what bad input gets."""

import critbeta
import numpy as np
import pytest
from paged import Case
from test_decode import tensor

torch = pytest.importorskip("torch")
import critbeta.torch  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

OPS = torch.ops.critbeta
# torch itself warns when parts of it start.
pytestmark = pytest.mark.filterwarnings("default")
CASE = Case(lens=[3, 40, 17], q_lens=[1, 2, 1])
Q, K, V, TABLES, LENS = map(tensor, CASE.given)
Q_LENS = tensor(CASE.q_lens)


def samples():
    indptr, indices = torch.tensor([0, 1, 4, 6]), torch.arange(6)
    radius, centre = torch.full(K.shape[:3:2], 9.0), torch.ones(2, 64)
    # torch's check takes NaN for a difference, so no slot and no bound is NaN here.
    k, v = K.nan_to_num(), V.nan_to_num()
    for pages in [
        (Q, k, v, TABLES, None, LENS, Q_LENS, None, ["identity"], 0.0, "NHD", None, None, None, None),
        (Q, k, v, indptr, indices, LENS, Q_LENS, 0.1, ["su"] * 6, 0.1, "NHD", 3.0, 9, radius, centre),
        (
            *(t.bfloat16() for t in (Q, k.transpose(1, 2), v.transpose(1, 2))),
            *(
                TABLES,
                None,
                LENS.int(),
                Q_LENS,
                None,
                ["critical:cap=8"],
                0.1,
                "HND",
                None,
                None,
                radius,
                None,
            ),
        ),
    ]:
        out = torch.empty(Q.shape, dtype=pages[0].dtype)
        yield "decode", pages
        yield "decode_stats", pages
        yield "decode_out", (*pages, out)
        yield "decode_stats_out", (*pages, out)
        yield "measure", (*pages[:2], *pages[3:9], *pages[10:13], 0.69)


@pytest.mark.parametrize(("name", "given"), [pytest.param(*sample, id=sample[0]) for sample in samples()])
def test_opcheck(name, given):
    torch.library.opcheck(getattr(OPS, name).default, given)


# Earlier versions of torch.compile took no objects of compiled types as constants.
TAKES_RESCALINGS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)
CAPPED = critbeta.Rescaling.parse("critical:cap=8") if TAKES_RESCALINGS else "critical:cap=8"


def new(q, k, v, tables, lens):
    found, row_stats = critbeta.decode(
        q * 2, k, v, tables, lens, q_lens=[1, 2, 1], eps=1e-3, return_stats=True
    )
    return found * 2, row_stats.beta + row_stats.kept


def into(q, k, v, tables, lens):
    out = torch.empty_like(q)
    critbeta.decode(q, k, v, tables, lens, q_lens=Q_LENS, rescaling=CAPPED, window=9, out=out)
    return out + 1, critbeta.decode(q, k, v, tables, lens, q_lens=Q_LENS, rescaling=["su"] * 6)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("function", [new, into])
def test_a_whole_function_is_compiled(function, backend):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    with torch.no_grad():
        for q in (Q, Q + 1):
            given = q, K, V, TABLES, LENS
            for found, expected in zip(compiled(*given), function(*given)):
                assert torch.equal(found, expected)


def test_measure_breaks_a_graph_and_has_an_operator_for_one():
    def whole(q):
        return OPS.measure(q, K, TABLES, None, LENS, Q_LENS, None, ["su"], "NHD", None, None, 0.0)

    beta, critical = torch.compile(whole, fullgraph=True, backend="aot_eager")(Q)
    measured = critbeta.measure(Q, K, TABLES, LENS, q_lens=Q_LENS, rescaling="su")
    assert np.array_equal(beta, measured.beta) and np.array_equal(critical, measured.critical_beta)
    function = lambda q: (
        torch.tanh(q).sum() * float(critbeta.measure(q, K, TABLES, LENS, q_lens=Q_LENS).n.sum())
    )  # noqa: E731
    torch.testing.assert_close(torch.compile(function, backend="eager")(Q), function(Q))


def test_derivatives_are_refused_by_name_and_inference_is_not():
    wanted = Q.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match=r"q of shape \(4, 6, 64\) requires a gradient.*q.detach"):
        critbeta.decode(wanted, K, V, TABLES, LENS, q_lens=Q_LENS)
    with pytest.raises(NotImplementedError, match="v_pages of shape .* requires a gradient"):
        critbeta.decode(Q, K, V.clone().requires_grad_(), TABLES, LENS, q_lens=Q_LENS)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(Q, Q)
        with pytest.raises(NotImplementedError, match="requires a gradient"):
            critbeta.decode(dual, K, V, TABLES, LENS, q_lens=Q_LENS)
    with torch.no_grad():
        found = critbeta.decode(wanted, K, V, TABLES, LENS, q_lens=Q_LENS)
    assert (
        torch.equal(found, critbeta.decode(Q, K, V, TABLES, LENS, q_lens=Q_LENS)) and not found.requires_grad
    )
    assert np.isfinite(critbeta.measure(wanted, K, TABLES, LENS, q_lens=Q_LENS).beta).all()


def decode(changed=(), kind="array", **options):
    """Calls decode on good arguments, but for those that are `changed`, with `out` to see that it stays."""
    named = dict(zip(("q", "k_pages", "v_pages", "block_tables", "lens"), CASE.given), q_lens=CASE.q_lens)
    named |= {name: change(named[name]) for name, change in dict(changed).items()}
    if kind == "tensor":
        is_array = lambda value: isinstance(value, np.ndarray) and value.dtype != np.uint64  # noqa: E731
        named = {name: tensor(value) if is_array(value) else value for name, value in named.items()}
    return critbeta.decode(**named, **options)


def with_page(number):
    def change(tables):
        tables = tables.copy()
        tables[1, 2] = number
        return tables

    return change


RADIUS = np.full((K.shape[0], 2), 9, np.float32)
BAD = {
    "id beyond the pool": (
        dict(block_tables=with_page(99)),
        {},
        ValueError,
        "page 99 in entry 2 of sequence 1.*pool has 12",
    ),
    "negative id": (dict(block_tables=with_page(-1)), {}, ValueError, "page -1 in entry 2 of sequence 1"),
    "id beyond int32": (
        dict(block_tables=lambda t: with_page(2**31)(t.astype(np.int64))),
        {},
        ValueError,
        r"block_tables: 2147483648 at \[1, 2\]",
    ),
    "length beyond the table": (
        dict(lens=lambda n: n + 200),
        {},
        ValueError,
        "length 203 of sequence 0.*5 pages of 16 slots",
    ),
    "negative length": (dict(lens=lambda n: n - 4), {}, ValueError, "length -1 of sequence 0"),
    "float lengths": (
        dict(lens=lambda n: n.astype(np.float32)),
        {},
        TypeError,
        "lens is .*float32.*: expected integers",
    ),
    "boolean lengths": (dict(lens=lambda n: n > 0), {}, TypeError, "lens is .*bool.*: expected integers"),
    "too few lengths": (
        dict(lens=lambda n: n[:2]),
        {},
        ValueError,
        "2 lengths: expected one for each of 3 sequences",
    ),
    "lengths of two dimensions": (dict(lens=lambda n: n[None]), {}, ValueError, r"lens of shape \(1, 3\)"),
    "too few query lengths": (dict(q_lens=lambda n: n[:2]), {}, ValueError, "2 query lengths"),
    "nine query tokens": (
        dict(q_lens=lambda n: n + [0, 7, 0]),
        {},
        ValueError,
        "query length 9 of sequence 1: expected 0 to 8",
    ),
    "other query tokens": (
        dict(q_lens=lambda n: n + 1),
        {},
        ValueError,
        "4 query tokens: the sequences have 7",
    ),
    "float tables": (
        dict(block_tables=lambda t: t.astype(np.float64)),
        {},
        TypeError,
        "block_tables is .*float64",
    ),
    "flat tables": (
        dict(block_tables=lambda t: t[0]),
        {},
        ValueError,
        r"block_tables of shape \(5,\).*\[seqs, blocks\]",
    ),
    "three tables": (
        dict(block_tables=lambda t: (t[0], t[0], t[0])),
        {},
        ValueError,
        "expected (.*indptr, indices|2)",
    ),
    "falling indptr": (
        dict(block_tables=lambda t: (np.array([0, 3, 1, 4]), np.arange(6))),
        {},
        ValueError,
        "entry 2 is 1, below 3",
    ),
    "q of two dimensions": (
        dict(q=lambda q: q[0]),
        {},
        ValueError,
        r"q of shape \(6, 64\): expected \[tokens, heads",
    ),
    "pages of three": (
        dict(k_pages=lambda k: k[0]),
        {},
        ValueError,
        r"k_pages of shape .*: expected \[pages, page",
    ),
    "other head_dim": (
        dict(q=lambda q: q[..., :56].copy()),
        {},
        ValueError,
        "expected one head_dim, found 56 and 64",
    ),
    "heads that do not divide": (
        dict(q=lambda q: q[:, :5].copy()),
        {},
        ValueError,
        "expected 2 kv_heads to divide 5 heads",
    ),
    "other pages of v": (
        dict(v_pages=lambda v: v[1:]),
        {},
        ValueError,
        "expected the same pages, slots and kv_heads",
    ),
    "q of float64": (
        dict(q=lambda q: q.astype(np.float64)),
        {},
        TypeError,
        "q .*float64.*expected float32, float16 or bfloat16",
    ),
    "pages of integers": (
        dict(k_pages=lambda k: np.zeros(k.shape, np.int8)),
        {},
        TypeError,
        "k_pages .*int8",
    ),
    "two dtypes": (
        dict(v_pages=lambda v: v.astype(np.float16)),
        {},
        TypeError,
        "k_pages is float32 and v_pages is float16",
    ),
    "head_dim 60": (
        dict.fromkeys(["q", "k_pages", "v_pages"], lambda x: x[..., :60].copy()),
        {},
        ValueError,
        "a head has 60 elements",
    ),
    "layout": ({}, dict(layout="nhd"), ValueError, "layout 'nhd': expected 'NHD' for .* or 'HND'"),
    "eps below 0": ({}, dict(eps=-0.1), ValueError, "eps -0.1: expected at least 0 and below 1"),
    "eps of 1": ({}, dict(eps=1.0), ValueError, "eps 1: expected at least 0 and below 1"),
    "eps NaN": ({}, dict(eps=float("nan")), ValueError, "eps NaN"),
    "scale": ({}, dict(scale=float("inf")), ValueError, "scale inf: expected a finite number"),
    "softcap": ({}, dict(softcap=0.0), ValueError, "softcap 0: expected a finite number above 0"),
    "window of 0": ({}, dict(window=0), ValueError, "window 0: expected at least 1"),
    "eps of text": ({}, dict(eps="a"), TypeError, "eps is str: expected a number"),
    "window of a fraction": ({}, dict(window=1.5), TypeError, "window is 1.5: expected an integer"),
    "negative window": ({}, dict(window=-3), ValueError, "window is -3"),
    "rescaling": ({}, dict(rescaling="no such law"), ValueError, "no such law"),
    "kind of rescaling": ({}, dict(rescaling=3), TypeError, "rescaling is int"),
    "too few rescalings": (
        {},
        dict(rescaling=["su"] * 3),
        ValueError,
        "3 rescalings: expected one for all.*6 query heads",
    ),
    "radii": ({}, dict(v_radius=RADIUS[1:]), ValueError, r"v_radius of shape \(11, 2\): expected \(12, 2\)"),
    "radii of float64": (
        {},
        dict(v_radius=RADIUS.astype(np.float64)),
        TypeError,
        "v_radius .*float64.*expected float32",
    ),
    "negative radius": ({}, dict(v_radius=-RADIUS, eps=0.1), ValueError, "radius -9 of page"),
    "centre": (
        {},
        dict(centre=np.ones((2, 8), np.float32)),
        ValueError,
        r"centre of shape \(2, 8\): expected \(2, 64\)",
    ),
    "NaN centre": (
        {},
        dict(centre=np.full((2, 64), np.nan, np.float32)),
        ValueError,
        "element 0 of the centre: it is NaN",
    ),
}


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_an_error_with_the_numbers_and_writes_nothing(name, kind):
    changed, options, error, message = BAD[name]
    out = np.full((*CASE.q.shape[:2], 60 if name == "head_dim 60" else 64), 7, np.float32)
    for out in (None, out):
        given = out if out is None or kind == "array" else torch.from_numpy(out)
        with pytest.raises(error, match=message):
            decode(changed, kind, **options, out=given)
    assert (out == 7).all()
    if not {"v_pages"} & set(changed) and not {"eps", "v_radius", "centre"} & set(options):
        keys = {name: change for name, change in dict(changed).items() if name != "v_pages"}
        named = dict(zip(("q", "k_pages", "block_tables", "lens"), CASE.given[:2] + CASE.given[3:]))
        named |= {"q_lens": CASE.q_lens}
        with pytest.raises(error, match=message):
            critbeta.measure(
                **named | {name: change(named[name]) for name, change in keys.items()}, **options
            )


def test_an_output_must_fit_and_be_memory_of_its_own():
    shared = np.zeros(V.numel() + Q.numel(), np.float32)
    v = shared[: V.numel()].reshape(V.shape)
    v[...] = np.nan_to_num(CASE.v)
    inside = shared[V.numel() - 64 : V.numel() - 64 + Q.numel()].reshape(Q.shape)
    q = CASE.q.copy()
    for changed, out, error, message in [
        (
            {},
            np.empty((4, 6, 63), np.float32),
            ValueError,
            r"out of shape \(4, 6, 63\): expected \(4, 6, 64\)",
        ),
        ({}, np.empty((4, 6, 64)), TypeError, "out is .*float64"),
        ({}, np.empty((6, 4, 64), np.float32).swapaxes(0, 1), ValueError, "expected C-contiguous"),
        (
            dict(v_pages=lambda _: v),
            inside,
            ValueError,
            "out of shape .* shares memory with v_pages of shape",
        ),
        (dict(q=lambda _: q), q, ValueError, "out of shape .* shares memory with q of shape"),
    ]:
        before = out.copy()
        for kind in ("array", "tensor"):
            given = out if kind == "array" or out.dtype == np.float64 else torch.from_numpy(out)
            with pytest.raises(error, match=message):
                decode(changed, kind, out=given)
        assert np.array_equal(out, before, equal_nan=True)
    out = np.empty(Q.shape, np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        decode(out=out)


def test_strides_of_parts_of_elements_or_backwards_are_refused():
    with pytest.raises(ValueError, match="k_pages of shape .* with strides .*ascending order"):
        decode(dict(k_pages=lambda k: k[::-1]))
    packed = np.zeros(K.shape, np.dtype([("flag", np.int8), ("k", np.float32)]))["k"]
    with pytest.raises(ValueError, match="k_pages of shape .* with strides .*whole elements"):
        decode(dict(k_pages=lambda _: packed))


def test_tensors_elsewhere_and_without_numbers():
    given = dict(q=Q, k_pages=K, v_pages=V, block_tables=TABLES, lens=LENS, q_lens=Q_LENS)
    on_meta = {name: value.to("meta") for name, value in given.items()}
    assert critbeta.decode(**on_meta).shape == Q.shape
    for name in given:
        with pytest.raises(ValueError, match="is on (meta|cpu), and q on (meta|cpu): expected one device"):
            critbeta.decode(**given | {name: on_meta[name]})
    of_keys = {name: value for name, value in on_meta.items() if name != "v_pages"}
    with pytest.raises(ValueError, match="q of shape .* is on meta: expected data, on the CPU"):
        critbeta.measure(**of_keys)
    with pytest.raises(TypeError, match="k_pages is ndarray, q a tensor on cpu: expected a tensor"):
        critbeta.decode(**given | {"k_pages": CASE.k})
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(value) for name, value in given.items()}
        assert critbeta.decode(**fake).shape == Q.shape
        with pytest.raises(ValueError, match="divide 5 heads"):
            critbeta.decode(**fake | {"q": fake["q"][:, :5]})
        on_gpu = {
            name: torch.empty(value.shape, dtype=value.dtype, device="cuda") for name, value in given.items()
        }
        assert critbeta.decode(**on_gpu).device.type == "cuda"
        for name in given:
            with pytest.raises(ValueError, match="is on (cuda:0|cpu), and q on (cuda:0|cpu): expected one dev"):
                critbeta.decode(**on_gpu | {name: fake[name]})
        of_keys = {name: value for name, value in on_gpu.items() if name != "v_pages"}
        with pytest.raises(ValueError, match="q of shape .* is a FakeTensor.*ops.critbeta.measure may be"):
            critbeta.measure(**of_keys)
        message = "k_pages of shape .* is on cuda:0: expected one device, pass q and all others there as tensors"
        with pytest.raises(ValueError, match=message):
            critbeta.measure(**of_keys | {"q": CASE.q, "lens": CASE.lens, "block_tables": CASE.tables})
