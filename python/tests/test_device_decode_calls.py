"""What `critbeta.decode` passes to a device, what it refuses, and how torch sees it: on a GPU or the
simulator (`device.py`)."""

import critbeta
import device
import numpy as np
import pytest
from device import HAS_GPU, Device
from paged import Q_LENS, D
from test_device_decode import OPS, bits, given, on_device, operands
from test_device_pages import BF16, DTYPES, F16, RULE, Recorder, whole

torch = pytest.importorskip("torch")
from critbeta import _core, _cuda  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")
F32 = torch.float32


def test_an_output_that_cannot_be_written_is_refused():
    case = whole(BF16)
    q, k, v, *words = given(case)
    tokens, heads, _ = q.shape
    with Device() as put:
        q, k, v, *words = map(put, (q, k, v, *words))
        memory = torch.zeros(heads + 1, q.numel(), dtype=BF16, device=q.device)
        apart = [f"fixed:{head}" for head in range(6)]
        for out, kind, message in [
            (
                memory[0].view(q.shape)[:, :, 1:],
                ValueError,
                r"out of shape .* 63\): expected \(13, 6, 64\), the tok",
            ),
            (q, ValueError, r"out of shape \(13, 6, 64\) shares memory with q of shape \(13, 6, 64\)"),
            (v.view(-1)[: q.numel()].view(q.shape), ValueError, "shares memory with v_pages of shape"),
            (k.view(-1)[-q.numel() :].view(q.shape), ValueError, "shares memory with k_pages of shape"),
            (
                q.float().double(),
                TypeError,
                "out is torch.float64: expected torch.float32, or torch.bfloat16 as q",
            ),
            (
                q.half(),
                NotImplementedError,
                "out is torch.float16: expected torch.float32, or torch.bfloat16",
            ),
            (memory[:2].view(-1)[::2][: q.numel()].view(q.shape), ValueError, "those of a head 1 apart"),
            (
                memory[0, :64].expand(q.shape),
                ValueError,
                r"with strides \(0, 0, 1\): expected each element at a pl",
            ),
            (
                memory[0].as_strided(q.shape, (6 * 64, 63, 1)),
                ValueError,
                "each element at a place of its own",
            ),
            (np.zeros(q.shape, np.float32), TypeError, "out is ndarray, q a tens"),
            (torch.empty(q.shape, device="meta"), ValueError, "out of shape .* is on meta, and q on "),
        ]:
            for rules in ("identity", apart):
                with pytest.raises(kind, match=message):
                    critbeta.decode(q, k, v, *words, **case.options, out=out, rescaling=rules)
        # One token, whose head 1 is written where head 2 is still to be read.
        row = torch.zeros(7, 64, dtype=BF16, device=q.device)
        with pytest.raises(ValueError, match="shares memory with q"):
            tables, lens = words[0][4:], words[1][4:]
            critbeta.decode(row[None, :6], k, v, tables, lens, rescaling=apart, out=row[None, 1:])
    assert not memory.any()


class DecodeRecorder(Recorder):
    def launch_decode(self, *call):
        self.calls.append(call)
        return self.engine.launch_decode(*call)


@pytest.mark.skipif(HAS_GPU, reason="it looks at the calls of the simulator")
@pytest.mark.parametrize("view", ["interleaved", "in layers"])
def test_pages_of_any_strides_are_read_where_they_lie(view):
    case, recorder = whole(F16), DecodeRecorder(device.SIMULATED)
    with Device() as put:
        expected = on_device(put, case, rescaling=RULE)
    memory = torch.stack([case.k, case.v], 2) if view == "interleaved" else torch.cat([case.k, case.v], 1)
    k, v = memory.unbind(2) if view == "interleaved" else memory.split(case.page, 1)
    assert not k.is_contiguous() and not v.is_contiguous()
    with Device(recorder):
        q, _, _, *sequences = given(case)
        found = critbeta.decode(q, k, v, *sequences, **case.options, rescaling=RULE)
        assert torch.equal(bits(found), bits(expected))
    # Without statistics one launch is all.
    (call,) = recorder.calls
    _, queries, keys, table, _, _, (values, eps), out, rule, report, skips = call
    assert keys == (k.data_ptr(), "f16", list(k.shape), list(k.stride())) and eps == 0
    assert values == (v.data_ptr(), "f16", list(v.shape), list(v.stride()))
    assert queries[0] == q.data_ptr() and out == (found.data_ptr(), "f16", list(found.stride())[:2])
    assert str(rule) == RULE and report is None and skips is None


@pytest.mark.skipif(HAS_GPU, reason="it counts the calls of the simulator")
def test_only_what_is_asked_for_is_measured():
    case, recorder = whole(F16), DecodeRecorder(device.SIMULATED)
    with Device(recorder) as put:
        for rule, launches in [("critical:cap=8", 1), ("su", 2), (RULE, 2)]:
            recorder.calls.clear()
            on_device(put, case, rescaling=rule, return_stats=True)
            assert len(recorder.calls) == launches, rule
        recorder.calls.clear()
        on_device(put, case, eps=0.1)
        assert len(recorder.calls) == 1


def test_queries_tables_and_lengths_of_other_strides_and_dtypes():
    case = whole(F16)
    with Device() as put:
        expected = on_device(put, case, rescaling=RULE)
        q, k, v, tables, lens = map(put, given(case))
        apart = put(torch.zeros(len(q), q.shape[1], 65, dtype=q.dtype))[..., 1:].copy_(q)
        for queries in (apart, q.transpose(0, 1).contiguous().transpose(0, 1)):
            for table in (torch.cat([tables, tables], 1)[:, : tables.shape[1]], tables.long()):
                for lengths in (lens.int(), lens.tolist(), lens.cpu().numpy()):
                    found = critbeta.decode(queries, k, v, table, lengths, q_lens=Q_LENS, rescaling=RULE)
                    assert torch.equal(bits(found), bits(expected))


def test_one_token_a_sequence_needs_no_lengths_of_queries():
    case = whole(BF16, lens=[3, 40, 0], q_lens=[1, 1, 1])
    with Device() as put:
        expected = on_device(put, case)
        del case.options["q_lens"]
        assert torch.equal(bits(on_device(put, case)), bits(expected))
        q, *others = map(put, given(case))
        with pytest.raises(
            ValueError, match="q of 2 tokens: expected one for each of 3 sequences, or q_lens"
        ):
            critbeta.decode(q[:2], *others)


def test_empty_batches():
    case = whole(BF16)
    with Device() as put:
        q, k, v, tables, lens = map(put, given(case))
        none, columns = critbeta.decode(q[:0], k, v, tables[:0], lens[:0], eps=0.1, return_stats=True)
        assert none.shape == (0, 6, D) and {column.shape for column in columns} == {(0, 6)}
        options = dict(q_lens=[0] * 5, rescaling=["su"] * 5 + ["critical"], eps=0.1, return_stats=True)
        none, columns = critbeta.decode(q[:0], k, v, tables, lens, **options)
        assert none.shape == (0, 6, D) and columns.kept.shape == (0, 6)
        assert OPS.decode_out(*operands(put, case, q=case.q[:0], q_lens=0 * case.q_lens, out=none)) is None


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"q": lambda q: q.float()}, NotImplementedError, "q is torch.float32 and k_pages is torch.bfloat16"),
        (
            {"v_pages": lambda v: v.float()},
            TypeError,
            "k_pages is torch.bfloat16 and v_pages is torch.float32",
        ),
        ({"v_pages": lambda v: v[1:]}, ValueError, "expected the same pages, slots and kv_heads"),
        (
            {"v_pages": lambda v: v[..., :4]},
            ValueError,
            "values of 4 elements, expected a multiple of 8 in 64",
        ),
        ({"v_pages": lambda v: v[..., 4:68]}, ValueError, "values of 60 elements, expected a multiple of 8"),
        ({"v_pages": lambda v: v.numpy(force=True)}, TypeError, "v_pages is ndarray, q a tensor"),
        ({"block_tables": lambda t: (t[0], t[1])}, NotImplementedError, r"of shapes \(8,\) and \(8,\)"),
        ({"eps": lambda _: 1.0}, ValueError, "eps 1.0: expected at least 0 and below 1"),
        ({"eps": lambda _: -0.1}, ValueError, "eps -0.1: expected at least 0"),
        ({"eps": lambda _: float("nan")}, ValueError, "eps nan: expected at least 0"),
        (
            {"v_radius": lambda _: np.ones((25, 2), np.float32)},
            NotImplementedError,
            r"v_radius of shape \(25, 2\): expected None on a GPU, whose kernels know no bound; the",
        ),
        (
            {"centre": lambda _: torch.ones(2, 64)},
            NotImplementedError,
            r"centre of shape \(2, 64\): expected None",
        ),
        (
            {"rescaling": lambda _: ["su"] * 5},
            ValueError,
            "5 rescalings: expected one for all, or one for each",
        ),
        ({"rescaling": lambda _: "soft"}, ValueError, "soft"),
        ({"q": lambda q: q[:, :0]}, ValueError, "expected at least one head"),
        ({"q": lambda q: q[:, :5]}, ValueError, "expected 2 kv_heads to divide 5 heads"),
        ({"q": lambda q: q.clone().requires_grad_()}, NotImplementedError, "requires a gradient"),
        ({"lens": lambda n: n[1:]}, ValueError, r"lens of shape \(4,\): expected one number for each of 5"),
        ({"lens": lambda n: n.float()}, TypeError, "lens is torch.float32: expected integers"),
        (
            {"q_lens": lambda n: n[:2]},
            ValueError,
            r"q_lens of shape \(2,\): expected one number for each of 5",
        ),
        (
            {"block_tables": lambda t: t[0]},
            ValueError,
            r"block_tables of shape \(8,\): expected \[seqs, blocks\]",
        ),
        ({"window": lambda _: 0}, ValueError, "window 0, expected at least 1"),
        ({"scale": lambda _: float("inf")}, ValueError, "scale inf, expected a finite number"),
        ({"softcap": lambda _: -1.0}, ValueError, "softcap -1, expected a finite number above 0"),
        ({"layout": lambda _: "HDN"}, ValueError, "layout 'HDN': expected 'NHD'"),
    ],
)
def test_what_is_not_computed_is_refused(change, kind, message):
    case = whole(F16 if "v_pages" in change and kind is TypeError else BF16)
    message = message.replace("torch.bfloat16 and v", "torch.float16 and v")
    with Device() as put:
        names = "q", "k_pages", "v_pages", "block_tables", "lens"
        options = dict(zip(names, map(put, given(case)))) | {"q_lens": put(case.q_lens)}
        for name, edit in change.items():
            options[name] = edit(options.get(name))
        with pytest.raises(kind, match=message):
            critbeta.decode(**options)


def test_strides_that_the_kernels_do_not_read_are_refused_with_their_numbers():
    case = whole(BF16)
    with Device() as put:
        q, k, v, tables, lens = map(put, given(case))
        wide = torch.zeros(*v.shape[:3], 68, dtype=v.dtype, device=v.device)
        for pages, message in [
            (
                wide[..., :64],
                "values with a stride of 68 elements from head to head, expected a multiple of 8",
            ),
            (wide.view(-1)[1 : 1 + v.numel()].view(v.shape), "values at .* are not aligned to 16 bytes"),
            (v.transpose(1, 3).contiguous().transpose(1, 3), "values with a stride of 1 elements from slot"),
        ]:
            with pytest.raises(ValueError, match=f"launch over 78 rows x 128 columns: {message}"):
                critbeta.decode(q, k, pages, tables, lens, q_lens=Q_LENS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    case = whole(dtype, lens=[3, 40, 17], q_lens=[1, 2, 1])
    case.k, case.v = case.k.nan_to_num(), case.v.nan_to_num()
    with Device() as put:
        # torch's check takes NaN for a difference, so no bound is NaN here.
        for name, eps in (
            ("decode", 0.1),
            ("decode_stats", 0.0),
            ("decode_out", 0.1),
            ("decode_stats_out", 0.0),
        ):
            out = put(torch.empty(case.q.shape, dtype=dtype)) if name.endswith("_out") else None
            torch.library.opcheck(getattr(OPS, name).default, operands(put, case, RULE, eps, out))


def test_a_whole_function_is_compiled():
    case = whole(BF16)

    def function(q, k, v, tables, lens, q_lens):
        out = torch.empty_like(q)
        critbeta.decode(q, k, v, tables, lens, q_lens=q_lens, rescaling=RULE, eps=1e-3, out=out)
        found, rows = critbeta.decode(q * 2, k, v, tables, lens, q_lens=q_lens, return_stats=True)
        return out + found, rows.beta + rows.kept

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with Device() as put, torch.no_grad():
        words = (*map(put, given(case)), put(case.q_lens))
        for found, expected in zip(compiled(*words), function(*words)):
            assert torch.equal(found, expected)


def test_a_graph_that_is_captured_needs_int32(monkeypatch):
    case = whole(BF16)
    with Device() as put:
        narrow = operands(put, case, lens=case.lens.int(), q_lens=case.q_lens.int())
        wide = operands(put, case)
        monkeypatch.setattr(_cuda, "is_capturing", lambda device: True)
        if not HAS_GPU:
            assert OPS.decode(*narrow).isfinite().all()
        with pytest.raises(
            ValueError, match="lens is torch.int64: a CUDA graph that is captured needs int32"
        ):
            OPS.decode(*wide)


@pytest.mark.skipif(not HAS_GPU, reason="the simulator has no graphs")
def test_a_graph_is_replayed_on_other_lengths():
    case = whole(BF16, lens=[40, 17, 90, 5], q_lens=[1, 2, 1, 3])
    put = torch.Tensor.cuda
    now = operands(put, case, RULE, 0.01, lens=case.lens.int(), q_lens=case.q_lens.int())
    later = case.lens.int() - torch.tensor([3, 10, 60, 5], dtype=torch.int32)
    OPS.decode_stats(*now)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = OPS.decode_stats(*now)
    for lens in (case.lens.int(), later, case.lens.int()):
        now[5].copy_(lens)
        graph.replay()
        for one, other in zip(found, OPS.decode_stats(*now)):
            assert torch.equal(one.nan_to_num(), other.nan_to_num())


def test_fake_tensors_on_a_gpu_have_shapes_and_errors():
    case = whole(BF16, dv=72)
    with FakeTensorMode():
        q, k, v, tables, lens = (torch.empty(of.shape, dtype=of.dtype, device="cuda") for of in given(case))
        rest = None, ["su"], 0.1, "NHD", None, None, None, None
        words = tables, None, lens, None
        out, *columns = OPS.decode_stats(q, k, v, *words, *rest)
        assert out.shape == (len(case.q), 6, 72) and out.device.type == "cuda" and out.dtype == BF16
        assert [column.dtype for column in columns] == 4 * [torch.float64] + [torch.int64, torch.float64]
        assert {(column.shape, column.device.type) for column in columns} == {(q.shape[:2], "cuda")}
        assert critbeta.decode(q, k, v, tables, lens, q_lens=Q_LENS).shape == out.shape
        assert OPS.decode_out(q, k, v, *words, *rest, torch.empty_like(out, dtype=F32)) is None
        with pytest.raises(NotImplementedError, match="q is torch.float32 and k_pages is torch.bfloat16"):
            OPS.decode(q.float(), k, v, *words, *rest)
        with pytest.raises(NotImplementedError, match=r"expected \[seqs, blocks\]; the kernels for GPUs"):
            OPS.decode(q, k, v, lens, lens, lens, None, *rest)
        with pytest.raises(NotImplementedError, match="v_radius of shape .*: expected None on a GPU"):
            OPS.decode(q, k, v, *words, *rest[:-2], torch.empty(25, 2), None)
        with pytest.raises(
            NotImplementedError, match="out is torch.float16: expected torch.float32, or torch.bf"
        ):
            OPS.decode_out(q, k, v, *words, *rest, out.half())
        with pytest.raises(ValueError, match=r"out of shape .*: expected \(13, 6, 72\)"):
            OPS.decode_out(q, k, v, *words, *rest, q)
        with pytest.raises(
            ValueError, match="v_pages of shape .* is on cpu, and q on cuda:0: expected one device"
        ):
            OPS.decode(q, k, torch.empty(v.shape, dtype=BF16), *words, *rest)
        with pytest.raises(ValueError, match="eps 1.5: expected at least 0"):
            OPS.decode(q, k, v, *words, None, ["su"], 1.5, *rest[3:])


def test_no_cpu_path_hides(monkeypatch):
    case = whole(BF16)

    def refuses(*_given):
        raise AssertionError("the CPU path ran")

    monkeypatch.setattr(_core, "decode", refuses)
    with Device() as put:
        assert on_device(put, case).isfinite().all()
        assert OPS.decode(*operands(put, case)).isfinite().all()
    with pytest.raises(AssertionError, match="the CPU path ran"):
        critbeta.decode(*given(case), **case.options)


@pytest.mark.skipif(HAS_GPU, reason="the model knows an H200 alone")
def test_the_model_predicts_what_the_plan_prints():
    engine = _core.Engine.simulated("sm_90")
    shape = [1, 32, 8, 128, 128 << 10, 16]
    given, critical = engine.decode_predictions(shape, "bf16", 0.0, 1.0)
    assert 1e-4 < given < critical < 2e-4
    fewer, _ = engine.decode_predictions(shape, "bf16", 1e-2, 0.3)
    assert fewer < given
    wide, _ = engine.decode_predictions(shape, "f32", 0.0, 1.0)
    assert wide > 1.8 * given
    with pytest.raises(ValueError, match="60 elements|stride of 60"):
        engine.decode_predictions([1, 32, 8, 60, 4096, 16], "bf16", 0.0, 1.0)
