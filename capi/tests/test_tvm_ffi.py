"""The entries by the convention of TVM-FFI, with NumPy arrays and PyTorch tensors."""

import math
import os
import random
import subprocess
import sys
import threading

import numpy as np
import pytest

tvm_ffi = pytest.importorskip("tvm_ffi")
COLUMNS = ("n max second ties argmax beta log_partition lse critical_beta critical_upper contact_gap contact_rank "
           "resolved_beta resolved_upper resolved_gap resolved_rank entropy top_two max_weight kept dropped "
           "bound").split()  # fmt: skip


@pytest.fixture(scope="module")
def critbeta(prefix):
    return tvm_ffi.load_module(str(prefix / "lib" / "libcritbeta.so"))


def critical_beta(row):
    gaps = np.sort(row.max() - row).astype(np.float64)
    return max([math.log((gaps <= t).sum()) / t for t in gaps if t > 0], default=0.0)


def weights(row, beta):
    raised = np.exp(beta * (row.astype(np.float64) - row.max()))
    return raised / raised.sum()


def exact(generator, *shape):
    """Eighths: their products and sums are exact in f32."""
    return (generator.integers(-8, 9, shape) / 8).astype(np.float32)


def test_softmax_and_reports_of_numpy(critbeta):
    scores = np.random.default_rng(1).normal(size=(5, 130)).astype(np.float32)
    out, reports = np.zeros_like(scores), np.zeros((5, len(COLUMNS)))
    critbeta.critbeta_softmax(scores, out, "critical:cap=50", None, None, reports)
    for row, found, report in zip(scores, out, reports):
        beta = critical_beta(row)
        assert report[COLUMNS.index("beta")] == pytest.approx(beta, rel=1e-15)
        np.testing.assert_allclose(found, weights(row, beta), rtol=5e-6)
    critbeta.critbeta_row_reports(scores, reports, 1.0, 0.5)
    assert [r[8] for r in reports] == pytest.approx([critical_beta(row) for row in scores], rel=1e-15)
    assert (reports[:, 12] < reports[:, 8]).all()
    # A number is a rule too, and so is nothing; each row may have a beta of its own.
    critbeta.critbeta_softmax(scores, out, 2)
    np.testing.assert_allclose(out[0], weights(scores[0], 2.0), rtol=5e-6)
    critbeta.critbeta_softmax(scores, out)
    np.testing.assert_allclose(out[0], weights(scores[0], 1.0), rtol=5e-6)
    betas, lens = np.arange(5, dtype=np.float32), np.array([130, 7, 1, 0, 130], np.int32)
    critbeta.critbeta_softmax(scores, out, None, lens, None, None, betas)
    np.testing.assert_allclose(out[1, :7], weights(scores[1, :7], 1.0), rtol=5e-6)
    assert (out[1, 7:] == 0).all() and (out[3] == 0).all()


def test_pages_of_numpy(critbeta):
    generator = np.random.default_rng(2)
    keys, values = exact(generator, 6, 4, 2, 64), exact(generator, 6, 4, 2, 64)
    queries, out = exact(generator, 2, 4, 64), np.zeros((2, 4, 64), np.float32)
    table, lens = np.array([[4, 0, 2], [1, 5, 3]], np.int32), np.array([11, 3], np.int32)
    measured, reports = np.zeros((8, len(COLUMNS))), np.zeros((2, 4, len(COLUMNS)))
    critbeta.critbeta_measure_paged(queries, keys, table, lens, measured, "critical")
    critbeta.critbeta_decode_paged(queries, keys, values, table, lens, out, "critical", reports)
    # The other layout, with indptr: the same bits.
    hnd, other = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in (keys, values)], np.zeros_like(out)
    indptr = np.array([0, 3, 6], np.int32)
    critbeta.critbeta_decode_paged(
        queries, *hnd, table.reshape(-1), lens, other, "critical", None, 0.0, None, None, None, None, indptr, "HND"
    )
    assert np.array_equal(out, other)
    for seq in range(2):
        rows = [(table[seq, j // 4], j % 4) for j in range(lens[seq])]
        for head in range(4):
            k, v = (np.array([x[page, slot, head // 2] for page, slot in rows]) for x in (keys, values))
            scores = k @ queries[seq, head] / 8
            beta = critical_beta(scores)
            found = dict(zip(COLUMNS, reports[seq, head]))
            assert found["beta"] == pytest.approx(beta, rel=1e-15) and found["kept"] == len(rows)
            assert measured[4 * seq + head, 8] == pytest.approx(beta, rel=1e-15)
            wanted = weights(scores, beta) @ v.astype(np.float64)
            np.testing.assert_allclose(out[seq, head], wanted, atol=1e-6)


def test_rules(critbeta, env):
    positions, out = np.array([0, 63, 4095], np.int64), np.zeros((3, 2), np.float32)
    critbeta.critbeta_rule_betas("qwen-logn:train=64", positions, out)
    assert out.tolist() == [[1, 1], [1, 1], [2, 2]]
    rule = critbeta.critbeta_rule_parse(f"calibrated:{env['CRITBETA_TEST_CALIBRATION']}", "layer.0", 1, 2)
    critbeta.critbeta_rule_betas(rule, positions, out)
    np.testing.assert_allclose(out[1:, 0], 0.5 * np.log([64, 4096]), rtol=1e-7)
    assert (out[:, 1] == 0.25).all()
    critbeta.critbeta_rule_free(rule)
    # A law that falls has no value for a row of one key, whose beta is 0 then.
    critbeta.critbeta_rule_betas("calibrated:c=1,xi=-0.5", positions, out)
    np.testing.assert_allclose(out[:, 0], [0, *np.log([64, 4096]) ** -0.5], rtol=1e-6)
    before = out.copy()
    with pytest.raises(ValueError, match="beta = inf for head 0 at position 0: expected a factor"):
        critbeta.critbeta_rule_betas("fixed:1e39", positions, out)
    assert (out == before).all()


def test_empty_tensors(critbeta):
    # NumPy gives them strides of 0.
    empty = np.zeros((0, 4), np.float32)
    critbeta.critbeta_softmax(empty, np.zeros_like(empty), "critical:cap=8")
    critbeta.critbeta_rule_betas("su", np.zeros(0, np.int64), np.zeros((0, 3), np.float32))


def test_plans_and_devices(critbeta):
    assert critbeta.critbeta_version()[:2] == "0."
    assert critbeta.critbeta_open("cpu") == "cpu"
    assert "64 x 4096 f32" in critbeta.critbeta_plan(64, 4096, "float32")
    assert critbeta.critbeta_workspace_bytes(64, 4096, tvm_ffi.dtype("bfloat16"), "cpu", True) == 0


def test_errors_arrive_as_those_of_python(critbeta):
    scores, out = np.ones((2, 4), np.float32), np.full((2, 4), 7, np.float32)
    for error, words, args in [
        (TypeError, "scores is an int", (1, out)),
        (TypeError, "rule is a tensor", (scores, out, scores)),
        (TypeError, "9 arguments", (scores, out, *[None] * 7)),
        (ValueError, "out: NULL", (scores,)),
        (ValueError, "scores: NULL", (None, out)),
        (ValueError, "criticl", (scores, out, "criticl")),
        (ValueError, "beta -1", (scores, out, -1)),
        (ValueError, r"out float32 \[1, 4\]", (scores, out[:1])),
        (ValueError, "float64", (scores.astype(np.float64), out)),
        (ValueError, "workspace float32", (scores, out, None, None, None, None, None, np.ones(3, np.float32))),
        (ValueError, "layer", (scores, out, "calibrated:/no/such/file.json")),
    ]:
        with pytest.raises(error, match=words):
            critbeta.critbeta_softmax(*args)
        assert (out == 7).all()
    with pytest.raises(RuntimeError, match="such"):
        critbeta.critbeta_rule_parse("calibrated:/no/such/file.json", "layer.0", 0, 1)
    with pytest.raises(TypeError, match="first_head"):
        critbeta.critbeta_rule_parse("critical", None, -1)
    with pytest.raises(ValueError, match="overlap"):
        critbeta.critbeta_softmax(scores, scores.reshape(-1)[:4].reshape(1, 4))
    with pytest.raises((RuntimeError, NotImplementedError), match="(?i)cuda"):
        critbeta.critbeta_open("cuda:77")


def test_random_arguments_end_in_errors_of_python(critbeta):
    draw = random.Random(1)
    names = "version open rule_parse rule_free rule_betas softmax row_reports decode_reports measure_paged".split()
    rule = critbeta.critbeta_rule_parse("critical")
    f32, i32, f64 = np.float32, np.int32, np.float64
    values = [
        None, True, 0, 1, -1, 1 << 62, -(1 << 63), 2.5, math.nan, math.inf, "", "cpu", "cuda:99", "critical",
        "HND", "a longer text than seven bytes", "\0", b"bytes", [1, 2], {"a": 1}, tvm_ffi.dtype("float32"),
        rule, print, np.ones((2, 4), f32), np.ones((2, 4), f32), np.zeros((0, 4), f32), np.ones(2, i32),
        np.ones((2, 22), f64), np.ones((2, 1, 64), f32), np.ones((3, 2, 1, 64), f32), np.ones((2, 2), i32),
        np.ones((2, 1, 64), f32), np.ones((2, 72), np.uint8), np.ones((), f32), np.ones((1,) * 9, f32),
        np.ones((2, 4), f32)[:, ::2],
    ]  # fmt: skip
    passed, failed = 0, 0
    for _ in range(6000):
        name = draw.choice([*names, "decode_paged", "plan", "workspace_bytes"])
        args = [draw.choice(values) for _ in range(draw.choice([0, 1, 2, 2, 3, 3, 4, 5, 6, 7, 9, 14, 21]))]
        if name == "rule_free":
            args = [arg for arg in args if arg is not rule]
        try:
            critbeta[f"critbeta_{name}"](*args)
            passed += 1
        except (TypeError, ValueError, RuntimeError, NotImplementedError, OverflowError) as error:
            assert str(error) and "defect" not in str(error), (name, args, error)
            failed += 1
    assert passed > 100 and failed > 1000
    critbeta.critbeta_rule_free(rule)


def test_many_threads(critbeta):
    scores = np.random.default_rng(5).normal(size=(32, 400)).astype(np.float32)
    outs = [np.zeros_like(scores) for _ in range(4)]
    threads = [threading.Thread(target=critbeta.critbeta_softmax, args=(scores, out, "critical")) for out in outs]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(np.array_equal(out, outs[0]) for out in outs) and outs[0].any()


def test_without_tvm_ffi_a_call_ends_in_an_error(prefix):
    # No libtvm_ffi is in this process, so the version cannot become a string, and the text is kept for C.
    program = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.critbeta_last_error.restype = ctypes.c_char_p
result = ctypes.create_string_buffer(16)
assert library.__getattr__("__tvm_ffi_critbeta_version")(None, None, 0, result) == -1
assert b"libtvm_ffi is not loaded" in library.critbeta_last_error(), library.critbeta_last_error()
assert library.__getattr__("__tvm_ffi_critbeta_softmax")(None, None, -1, result) == -1
assert b"-1 arguments" in library.critbeta_last_error()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(prefix / "lib/libcritbeta.so")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


TORCH = """
import sys, torch, tvm_ffi
assert not torch.cuda.is_available()
critbeta = tvm_ffi.load_module(sys.argv[1])
torch.manual_seed(0)
for dtype, tolerance in (torch.float32, 3e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3):
    scores = torch.randn(8, 256).to(dtype)
    out, reports = torch.zeros_like(scores), torch.zeros(8, 22, dtype=torch.float64)
    critbeta.critbeta_softmax(scores, out, "fixed:1.5", None, None, reports)
    wanted = torch.softmax(1.5 * scores.double(), -1)
    torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=1e-7)
    torch.testing.assert_close(reports[:, 7], torch.logsumexp(1.5 * scores.double(), -1), rtol=1e-6, atol=0)
    # In place, on the rows of a larger tensor.
    wide = torch.zeros(8, 300, dtype=dtype)
    wide[:, 20:276] = scores
    critbeta.critbeta_softmax(wide[:, 20:276], wide[:, 20:276], "fixed:1.5")
    assert torch.equal(wide[:, 20:276], out) and not wide[:, :20].any() and not wide[:, 276:].any()
# A cache as vLLM has it: K is a part of each slot, and pages are [blocks, heads, slots, 2 * dim].
cache = torch.randn(9, 2, 16, 128).to(torch.bfloat16)
k, v = (part.transpose(1, 2) for part in cache.split(64, -1))
query, out = torch.randn(3, 4, 64, dtype=torch.bfloat16), torch.zeros(3, 4, 64)
table, lens = torch.randperm(9, dtype=torch.int32).reshape(3, 3), torch.tensor([40, 1, 33], dtype=torch.int32)
critbeta.critbeta_decode_paged(query, k, v, table, lens, out, "fixed:1.25")
for s in range(3):
    own = [x[table[s].long()].reshape(-1, 2, 64)[: lens[s]].double() for x in (k, v)]
    own = [x.repeat_interleave(2, 1) for x in own]
    weights = torch.softmax(1.25 / 8 * torch.einsum("hd,nhd->hn", query[s].double(), own[0]), -1)
    torch.testing.assert_close(out[s].double(), torch.einsum("hn,nhd->hd", weights, own[1]), rtol=1e-4, atol=1e-5)
print("passed")
"""


def test_torch(prefix):
    python = os.environ.get("CRITBETA_TORCH_PYTHON")
    if not python:
        pytest.skip("no PyTorch: scripts/python-test.sh makes target/python-venv with it")
    # The environment of PyTorch, and tvm_ffi of this one.
    path = os.path.dirname(os.path.dirname(tvm_ffi.__file__))
    words = [python, "-c", f"import sys; sys.path.append({path!r})\n{TORCH}", str(prefix / "lib/libcritbeta.so")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "passed\n", done.stdout + done.stderr
