"""The library by ctypes, as a language with no more than a C call has it: half types, and calls at random."""

import ast
import ctypes
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest

CODES = {"i": 0, "u": 1, "f": 2}


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


def tensor(array, bfloat16=False):
    """An array as DLPack has it. Its memory must outlive the tensor."""
    sizes = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
    steps = (ctypes.c_int64 * max(array.ndim, 1))(*(s // array.itemsize for s in array.strides))
    code = 4 if bfloat16 else CODES[array.dtype.kind]
    return DLTensor(array.ctypes.data, 1, 0, array.ndim, code, 8 * array.itemsize, 1, sizes, steps, 0)


def struct(name, pointers, doubles=(), counts=(), words=(), last=()):
    fields = [("size", ctypes.c_size_t), *((p, ctypes.c_void_p) for p in pointers)]
    fields += [(d, ctypes.c_double) for d in doubles] + [(c, ctypes.c_uint64) for c in counts]
    fields += [(w, ctypes.c_uint32) for w in words]
    fields += [(p, ctypes.c_uint64 if p.endswith("bytes") else ctypes.c_void_p) for p in last]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


PLACE = ("stream", "workspace", "workspace_bytes")
Softmax = struct("Softmax", ("scores", "out", "rule", "betas", "lens", "positions", "reports"), last=PLACE)
Reports = struct("Reports", ("scores", "lens", "reports"), ("beta", "resolve"), ("top_k",), last=PLACE)
Paged = struct(
    "Paged",
    ("queries", "keys", "values", "table", "indptr", "lens", "query_lens", "rule", "out", "reports", "v_radius",
     "centre"),
    ("scale", "softcap", "eps", "resolve"), ("top_k", "window"), ("layout", "measured"),
)  # fmt: skip


def call(library, function, engine, kind, **fields):
    args = kind(size=ctypes.sizeof(kind))
    for name, value in fields.items():
        setattr(args, name, ctypes.addressof(value) if isinstance(value, DLTensor) else value)
    status = getattr(library, function)(engine, ctypes.byref(args))
    return status, library.critbeta_last_error().decode()


def opened(library, device):
    engine = ctypes.c_void_p()
    assert library.critbeta_open(device, ctypes.byref(engine)) == 0, library.critbeta_last_error()
    return engine


def parsed(library, text):
    rule, none = ctypes.c_void_p(), ctypes.c_uint64(0)
    assert library.critbeta_rule_parse(text, None, none, none, ctypes.byref(rule)) == 0
    return rule


def critical_beta(row):
    """The supremum over gaps t > 0 of log N(t) / t, gap by gap, in f64."""
    gaps = np.sort(row.max() - row).astype(np.float64)
    return max([math.log((gaps <= t).sum()) / t for t in gaps if t > 0], default=0.0)


@pytest.mark.parametrize("device", [b"cpu", b"simt"])
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_types(library, device, half):
    engine, rule = opened(library, device), parsed(library, b"critical")
    wide = np.round(np.random.default_rng(3).normal(size=(4, 200)) * 16).astype(np.float32) / 8
    scores = wide.astype(np.float16) if half == "float16" else (wide.view(np.uint32) >> 16).astype(np.uint16)
    assert half == "float16" or np.array_equal((scores.astype(np.uint32) << 16).view(np.float32), wide)
    out = np.zeros((4, 200), np.float32)
    s, o = tensor(scores, half == "bfloat16"), tensor(out)
    assert call(library, "critbeta_softmax", engine, Softmax, scores=s, out=o, rule=rule)[0] == 0
    for row, found in zip(wide, out):
        beta = critical_beta(row)
        if math.isfinite(beta) and (row == row.max()).sum() == 1:
            weights = np.exp(beta * (row.astype(np.float64) - row.max()))
            np.testing.assert_allclose(found, weights / weights.sum(), rtol=3e-6)
    half_out = np.zeros((4, 200), np.uint16 if half == "bfloat16" else np.float16)
    o = tensor(half_out, half == "bfloat16")
    assert call(library, "critbeta_softmax", engine, Softmax, scores=s, out=o, rule=rule)[0] == 0
    wide_out = (half_out.astype(np.uint32) << 16).view(np.float32) if half == "bfloat16" else half_out
    np.testing.assert_allclose(wide_out, out, rtol=2**-8, atol=1e-7)
    assert library.critbeta_rule_free(rule) == 0 and library.critbeta_close(engine) == 0


def test_positions_and_strided_rows(library):
    engine, rule = opened(library, b"cpu"), parsed(library, b"qwen-logn:train=16")
    block = np.random.default_rng(4).normal(size=(3, 80)).astype(np.float32)
    scores, out = block[:, 8:72], np.zeros((3, 64), np.float32)
    positions = np.array([3, 15, 255], np.int32)
    fields = {"scores": tensor(scores), "out": tensor(out), "rule": rule, "positions": tensor(positions)}
    assert call(library, "critbeta_softmax", engine, Softmax, **fields)[0] == 0
    for row, found, position in zip(scores.astype(np.float64), out, positions):
        weights = np.exp(max(1.0, math.log(position + 1) / math.log(16)) * (row - row.max()))
        np.testing.assert_allclose(found, weights / weights.sum(), rtol=3e-6)


def test_reports_of_more_and_fewer_columns(library):
    engine, scores = opened(library, b"cpu"), np.array([[3, 0, 0, 0], [1, 1, np.nan, 0]], np.float32)
    for columns in (1, 9, 30):
        reports = np.zeros((2, columns))
        assert call(library, "critbeta_row_reports", engine, Reports, scores=tensor(scores),
                    reports=tensor(reports))[0] == 0  # fmt: skip
        assert reports[0, 0] == 4 and reports[1, 0] == 4
        if columns > 8:
            assert reports[0, 8] == math.log(4) / 3 and np.isnan(reports[1, 8])
        assert np.isnan(reports[:, 22:]).all()
    spaced = np.full((2, 12), 7.0)
    fields = {"scores": tensor(scores), "reports": tensor(spaced[:, :9])}
    assert call(library, "critbeta_row_reports", engine, Reports, **fields)[0] == 0
    assert spaced[0, 8] == math.log(4) / 3 and (spaced[:, 9:] == 7).all()
    single, apart = np.zeros((2, 9), np.float32), np.zeros((2, 18))[:, ::2]
    for bad in (np.zeros((2, 0)), np.zeros((3, 9)), np.zeros(9), single, apart):
        fields = {"scores": tensor(scores), "reports": tensor(bad)}
        status, text = call(library, "critbeta_row_reports", engine, Reports, **fields)
        assert status == 1 and "reports" in text
    for setting in ({"beta": math.nan}, {"beta": -1.0}, {"resolve": math.nan}, {"resolve": math.inf}):
        status, text = call(library, "critbeta_row_reports", engine, Reports, scores=tensor(scores),
                            reports=tensor(spaced), **setting)  # fmt: skip
        assert status == 1 and next(iter(setting)) in text


FUNCTIONS = {
    "critbeta_softmax": Softmax, "critbeta_row_reports": Reports, "critbeta_measure_paged": Paged,
    "critbeta_decode_paged": Paged,
}  # fmt: skip
# Name, shape, whether it is often left out. Whole numbers are in OF_INTS.
TENSORS = {
    Softmax: [("scores", (3, 8), 0), ("out", (3, 8), 0), ("lens", (3,), 1), ("positions", (3,), 1), ("reports", (3, 22), 1),
              ("betas", (3,), 1)],
    Reports: [("scores", (3, 8), 0), ("reports", (3, 22), 0), ("lens", (3,), 1)],
    Paged: [("queries", (2, 4, 64), 0), ("keys", (4, 4, 2, 64), 0), ("values", (4, 4, 2, 64), 0), ("table", (2, 2), 0),
            ("lens", (2,), 0), ("out", (2, 4, 64), 0), ("reports", (8, 22), 0), ("indptr", (3,), 2),
            ("query_lens", (2,), 2), ("v_radius", (4, 2), 1), ("centre", (2, 64), 1)],
}  # fmt: skip
OF_INTS = ("lens", "positions", "table", "indptr", "query_lens")
SIZES = [0, 1, 1, 2, 3, 4, 8, 64, 63, 72, -1, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63)]
STRIDES = [0, 1, 2, 8, 64, 65, -1, 1 << 50, 1 << 62]
DTYPES = [(16, 2), (16, 4), (8, 1), (64, 2), (64, 0), (7, 9), (32, 1), (32, 0), (32, 2)]
NUMBERS = [0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e308, 5e-324, 0.5]


def mutated(draw, made, data, shape):
    """Spoils a tensor in one or two ways, or in none if what it then claims is not there."""
    shape, strides, before = list(shape), None, bytes(made)
    for _ in range(draw.choice([1, 1, 2])):
        what = draw.randrange(11)
        if what == 0:
            shape[draw.randrange(len(shape))] = draw.choice(SIZES)
        elif what == 1:
            shape.insert(draw.randrange(len(shape) + 1), draw.choice([1, 1, 2, 0]))
        elif what == 2 and len(shape) > 1:
            del shape[draw.randrange(len(shape))]
        elif what == 3:
            made.bits, made.code = draw.choice(DTYPES)
        elif what == 4:
            strides = True
        elif what == 5:
            made.device_type, made.device_id = draw.choice([2, 3, 0, -5]), draw.choice([0, 1, -1])
        elif what == 6:
            made.byte_offset = draw.choice([1, 4, 64, 1 << 63, (1 << 64) - 4])
        elif what == 7:
            made.lanes = draw.choice([0, 4])
        elif what == 8:
            made.data = draw.choice([None, data.ctypes.data + 1, data.ctypes.data + 1024])
    made.ndim, made.shape = len(shape), (ctypes.c_int64 * len(shape))(*shape)
    if strides:
        strides = [draw.choice(STRIDES) for _ in shape]
        made.strides = (ctypes.c_int64 * len(shape))(*strides)
    if what == 9:
        made.ndim = draw.choice([-1, 9, 1 << 30])
    elif what == 10:
        made.shape = None
    # What remains is within the memory that is there, or beyond any address space.
    steps = strides or [math.prod(map(abs, shape[i + 1 :])) for i in range(len(shape))]
    reach = sum(max(n - 1, 0) * abs(s) for n, s in zip(shape, steps)) + 1
    refused = any(n < 0 for n in shape) or any(s < 0 for n, s in zip(shape, steps) if n > 1)
    end = reach * ((made.bits + 7) // 8) + (made.byte_offset % (1 << 63) if made.data else 0) + 1024
    if not refused and 0 not in shape and data.nbytes < end < 1 << 63:
        ctypes.memmove(ctypes.addressof(made), before, len(before))


def hostile(library, seed, device, turns):
    """Calls whose arguments are spoiled at random. Memory that a tensor claims is there: C cannot check that."""
    draw = random.Random(seed)
    engine, rules = opened(library, device), [parsed(library, t) for t in (b"critical:cap=4", b"su", b"fixed:0")]
    pool = np.full(1 << 16, 0.5, np.float32)
    ints = np.array([2, 0, 1, 3, 2, 8, 1, 0] * 256, np.int32)
    counted = {}
    for _ in range(turns):
        function = draw.choice(list(FUNCTIONS))
        kind = FUNCTIONS[function]
        args, kept, at = kind(size=ctypes.sizeof(kind)), [], 0
        names = [name for name, _, rare in TENSORS[kind] if draw.random() < (1, 0.5, 0.15)[rare]]
        spoiled = draw.sample(names, min(len(names), draw.choice([0, 0, 1, 1, 1, 2])))
        for name, shape, _ in TENSORS[kind]:
            if name not in names:
                continue
            raw = device != b"cpu" and name == "reports"
            data = ints if name in OF_INTS else pool[at:]
            at += 0 if name in OF_INTS else 2048
            bits, code = (32, 0) if name in OF_INTS else (8, 1) if raw else (64, 2) if name == "reports" else (32, 2)
            shape = (*shape[:-1], 72) if raw else shape
            sizes = (ctypes.c_int64 * len(shape))(*shape)
            one = DLTensor(data.ctypes.data, 1, 0, len(shape), code, bits, 1, sizes, None, 0)
            if name in spoiled:
                mutated(draw, one, data, shape)
            kept += [one, sizes]
            setattr(args, name, ctypes.addressof(one))
        if hasattr(args, "rule"):
            wrong = engine.value if draw.random() < 0.1 else None
            args.rule = draw.choice([None, *(rule.value for rule in rules), wrong])
        for name, of in kind._fields_:
            if draw.random() < 0.03 and name != "size":
                if of is ctypes.c_double:
                    setattr(args, name, draw.choice(NUMBERS))
                elif of is not ctypes.c_void_p:
                    setattr(args, name, draw.choice([0, 1, 2, 3, (1 << 32) - 1, (1 << 64) - 1]))
                elif name in names:
                    setattr(args, name, None)
        if draw.random() < 0.03:
            args.size = draw.choice([0, 1, 8, 9, 24, 40, 64, (1 << 64) - 1])
        before = pool.copy()
        status = getattr(library, function)(engine if draw.random() < 0.98 else None, ctypes.byref(args))
        text = library.critbeta_last_error().decode()
        assert status in (0, 1, 2), (function, status, text)
        counted[function, status] = counted.get((function, status), 0) + 1
        if status:
            assert text and np.array_equal(before, pool, equal_nan=True), (function, text)
        pool[:] = 0.5 if draw.random() < 0.9 else draw.choice([math.nan, math.inf, -math.inf, -3e38])
    return counted


def test_reports_of_a_gpu_may_hold_anything(library):
    raw = np.random.default_rng(1).integers(0, 256, (20_000, 72), np.uint8)
    raw[::3, :64] //= 100  # small numbers
    reports = np.zeros((len(raw), 22))
    for resolve in (0.0, 1.5, math.nan, -1.0):
        status = library.critbeta_decode_reports(
            ctypes.byref(tensor(raw)), ctypes.c_double(resolve), ctypes.byref(tensor(reports))
        )
        assert status == (0 if resolve >= 0 else 1)


def test_problems_and_rules_of_any_size(library):
    class Problem(ctypes.Structure):
        _fields_ = [("size", ctypes.c_size_t), ("rows", ctypes.c_uint64), ("cols", ctypes.c_uint64),
                    ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                    ("reports_only", ctypes.c_uint32)]  # fmt: skip

    draw, text, bytes_ = random.Random(2), ctypes.create_string_buffer(50), ctypes.c_uint64()
    sizes = [0, 1, 64, 4097, 1 << 24, (1 << 24) + 1, 1 << 31, 1 << 40, (1 << 63) + 1, (1 << 64) - 1]
    for engine in (opened(library, b"cpu"), opened(library, b"simt")):
        found = set()
        for _ in range(500):
            problem = Problem(32, draw.choice(sizes), draw.choice(sizes), draw.choice([2, 2, 4, 1]),
                              draw.choice([16, 32]), 1, draw.choice([0, 1]))  # fmt: skip
            capacity = ctypes.c_size_t(draw.choice([0, 1, 2, 50]))
            found.add(library.critbeta_plan(engine, ctypes.byref(problem), text, capacity, None))
            found.add(library.critbeta_workspace_bytes(engine, ctypes.byref(problem), ctypes.byref(bytes_)))
        assert found == {0, 1}
    rule = ctypes.c_void_p()
    pieces = ["critical", "calibrated", "fixed", "su", ":", "=", ",", "cap", "c", "xi", "1e999", "-1", "nan", "é", '"']
    for _ in range(3000):
        spelled = "".join(draw.choices(pieces, k=draw.randrange(7))).encode()
        none = ctypes.c_uint64(0)
        status = library.critbeta_rule_parse(spelled, None, none, none, ctypes.byref(rule))
        assert status in (0, 1), (spelled, status)
        assert status or library.critbeta_rule_free(rule) == 0


@pytest.mark.parametrize("device", ["cpu", "simt"])
@pytest.mark.parametrize("seed", range(2))
def test_hostile_calls_end_in_a_status(prefix, device, seed):
    # In a process of its own: a crash is then a failure of this test.
    program = (
        "import sys, ctypes, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from test_ctypes import hostile\n"
        "library = ctypes.CDLL(sys.argv[2]); library.critbeta_last_error.restype = ctypes.c_char_p\n"
        "print(sorted(hostile(library, int(sys.argv[3]), sys.argv[4].encode(), 4000).items()))"
    )
    words = [sys.executable, "-c", program, os.path.dirname(__file__), str(prefix / "lib/libcritbeta.so"), str(seed)]
    done = subprocess.run([*words, device], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "panicked" not in done.stderr
    # Many calls go through, and many are refused.
    counted = dict(ast.literal_eval(done.stdout))
    for function in FUNCTIONS:
        on_cpu_only = device != "cpu" and "paged" in function
        assert counted.get((function, 2 if on_cpu_only else 0), 0) > 100, counted
        assert counted[function, 1] > 10, counted
