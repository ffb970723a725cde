"""The calls of the package to the CUDA kernels, without kernels: an engine that records every call."""

import ctypes
import subprocess
import sys
import threading

import critbeta
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import critbeta.torch  # noqa: E402
from critbeta import _core, _cuda  # noqa: E402

NAMES = "stream scores shape lens positions rescaling out report workspace resolve top_k sums both".split()
DTYPES = [(torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")]


class Recorder:
    """An engine for tensors in CPU memory."""

    def __init__(self):
        self.calls, self.planned, self.needed = [], [], 0

    def workspace_bytes(self, *problem):
        self.planned.append(problem)
        return self.needed

    def launch(self, *given):
        self.calls.append(dict(zip(NAMES, given, strict=True)))


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(_cuda, "engine", lambda device: recorder)
    monkeypatch.setattr(_cuda, "stream", lambda device: 1234)
    monkeypatch.setattr(critbeta.torch, "is_launched", lambda scores: scores.numel() > 0)
    return recorder


@pytest.mark.parametrize(("dtype", "name"), DTYPES)
def test_rows_apart_are_borrowed_on_the_current_stream(recorder, dtype, name):
    wide = torch.zeros(2, 3, 100, dtype=dtype)
    scores, out = wide[..., 10:70], torch.zeros(2, 3, 60, dtype=dtype)
    assert critbeta.softmax(scores, "su", out=out) is out
    (call,) = recorder.calls
    assert call["stream"] == 1234 and call["scores"] == (wide.data_ptr() + 10 * wide.element_size(), name)
    assert (
        call["shape"] == [6, 60, 100]
        and call["out"] == (out.data_ptr(), name, 60)
        and str(call["rescaling"]) == "su:base=512"
    )
    assert recorder.planned == [(6, 60, name, True)]
    # The call wants probabilities only: no report, no workspace, nothing to decode.
    assert all(call[absent] is None for absent in ("lens", "positions", "report", "workspace", "top_k"))
    assert call["sums"] is False


def test_probabilities_are_new_memory_and_a_report_says_beta(recorder):
    scores = torch.zeros(4, 50)
    found = critbeta.softmax(scores)
    (call,) = recorder.calls
    assert call["out"] == (found.data_ptr(), "f32", 50) and found.data_ptr() != scores.data_ptr()
    assert call["report"] is not None and call["report"] % 8 == 0


def test_an_output_in_place_has_the_address_of_scores(recorder):
    scores = torch.zeros(4, 50)
    critbeta.softmax(scores, out=scores)
    (call,) = recorder.calls
    assert call["scores"] == (scores.data_ptr(), "f32") and call["out"] == (scores.data_ptr(), "f32", 50)
    assert call["shape"] == [4, 50, 50]


@pytest.mark.parametrize(
    "view", [lambda s: s.T, lambda s: s[:, ::2], lambda s: s[0].expand(40, 60)], ids=["T", "::2", "expanded"]
)
def test_rows_that_no_kernel_reads_are_copied(recorder, view):
    scores = view(torch.zeros(40, 60))
    critbeta.softmax(scores, out=torch.empty(scores.shape))
    (call,) = recorder.calls
    assert call["scores"][0] != scores.data_ptr() and call["shape"] == [*scores.shape, scores.shape[1]]


def test_a_workspace_is_aligned_and_as_large_as_it_was_planned(recorder):
    recorder.needed = 1000
    critbeta.softmax(torch.zeros(4, 50))
    (call,) = recorder.calls
    address, size = call["workspace"]
    assert address % 256 == 0 and size == 1000
    zeros = (ctypes.c_uint8 * size).from_address(address)
    assert not any(zeros)


def test_a_thread_keeps_a_workspace_for_each_stream(recorder, monkeypatch):
    recorder.needed = 1000
    monkeypatch.setattr(_cuda, "_of_thread", threading.local())

    def address():
        critbeta.softmax(torch.zeros(4, 50))
        return recorder.calls[-1]["workspace"][0]

    first = address()
    assert address() == first
    recorder.needed = 700
    assert address() == first and recorder.calls[-1]["workspace"][1] == 700
    monkeypatch.setattr(_cuda, "stream", lambda device: 5)
    other = address()
    monkeypatch.setattr(_cuda, "stream", lambda device: 1234)
    assert other != first and address() == first
    found = []
    thread = threading.Thread(target=lambda: found.append(address()))
    thread.start()
    thread.join()
    assert found[0] not in (first, other)
    recorder.needed = 100_000
    assert address() != first and recorder.calls[-1]["workspace"][1] == 100_000


def test_a_workspace_is_not_used_again_after_an_error(recorder, monkeypatch):
    recorder.needed = 1000
    critbeta.softmax(torch.zeros(4, 50))
    assert _cuda._of_thread.workspaces

    def fails(*_given):
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(recorder, "launch", fails)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        critbeta.softmax(torch.zeros(4, 50))
    assert not hasattr(_cuda._of_thread, "workspaces")


def test_lens_and_positions_are_one_word_per_row(recorder, monkeypatch):
    words = {}

    def launch(*given):
        call = dict(zip(NAMES, given, strict=True))
        for name in ("lens", "positions"):
            import ctypes

            words[name] = list((ctypes.c_uint32 * 6).from_address(call[name]))

    recorder.launch = launch
    scores = torch.zeros(2, 3, 50)
    critbeta.softmax(
        scores,
        "qwen-logn:train=9",
        out=torch.empty_like(scores),
        lens=torch.tensor([[-1, 7, 2**40], [50, 51, 0]]),
        positions=torch.tensor([[5], [2**32 - 1]]),
    )
    assert words == {"lens": [0, 7, 50, 50, 50, 0], "positions": [5] * 3 + [2**32 - 1] * 3}


def test_only_laws_of_the_position_get_it(recorder):
    scores = torch.zeros(3, 50)
    scores[1, 40:] = -torch.inf
    for law in critbeta.laws:
        given = ",".join(f"{p['name']}={p['example']}" for p in law.parameters)
        spec = f"{law.name}:{given}" if given else law.name
        critbeta.softmax(scores, spec, out=torch.empty_like(scores))
        rule = critbeta.Rescaling.parse(spec)
        depends = len({rule.beta(90_000, position, entropy=2.0) for position in (0, 10_000, 80_000)}) > 1
        passed = recorder.calls[-1]["positions"] is not None
        assert passed == depends == (law.name in _cuda._BY_POSITION), law.name


def test_last_visible_keys_are_the_cpus():
    scores = torch.randn(5, 4, 30)
    scores[scores < 0.3] = -torch.inf
    scores[0, 0] = -torch.inf
    lens = torch.tensor([30, 0, 17, 3])
    found = _cuda._last_visible(scores.reshape(20, 30), _cuda._within(scores, lens))
    assert found.tolist() == critbeta.stats(scores, lens=lens).position.ravel().tolist()


def test_counts_whose_logarithm_exceeds_the_resolve():
    import math

    for resolve in [0.0, 0.5, math.log(2), 0.6931471805599453, math.log(9170), 11.0, 16.6]:
        found = _cuda._smallest_exceeding(resolve)
        assert math.log(found) > resolve and (found == 1 or not math.log(found - 1) > resolve), resolve
    assert _cuda._smallest_exceeding(1e308) > 2**24


def test_without_a_gpu_the_error_names_every_attempt():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here: test_cuda.py")
    message = r"no kernels for cuda:0: .*(libcuda|GPU|built for CUDA).*scores\.cpu\(\)"
    with pytest.raises(RuntimeError, match=message):
        _cuda.engine(torch.device("cuda:0"))
    assert not _cuda._engines
    with pytest.raises(ValueError, match="unknown arch"):
        _core.Engine.simulated("sm_1")


def test_the_nvrtc_of_torchs_wheels_is_found_by_its_name():
    code = """
import ctypes
from critbeta import _cuda
notes = _cuda._load_nvrtc()
names = [name for name in ("libnvrtc.so.13", "libnvrtc.so.12") if not notes]
if not names:
    print("none", notes)
    raise SystemExit
for name in names:
    try:
        nvrtc = ctypes.CDLL(name)
        break
    except OSError:
        pass
program = ctypes.c_void_p()
source = b"__global__ void f(float* x) { *x = 1; }"
assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"f.cu", 0, None, None) == 0
options = (ctypes.c_char_p * 1)(b"--gpu-architecture=sm_90")
assert nvrtc.nvrtcCompileProgram(program, 1, options) == 0
size = ctypes.c_size_t()
assert nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0 and size.value > 1000
print("compiled")
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if done.stdout.startswith("none"):
        pytest.skip(f"this torch brings no NVRTC: {done.stdout}")
    assert done.stdout == "compiled\n"


def test_reports_and_positions_are_one_of_each_row():
    size = dict(_core.report_layout())["bytes"]
    for reports, positions in [((3, size), 2), ((2, size), 3), ((2, size - 1), 2)]:
        given = np.zeros(reports, np.uint8), np.zeros(positions, np.int64)
        message = rf"reports of shape \[{reports[0]}, {reports[1]}\]: expected \[{positions}, {size}\]"
        with pytest.raises(ValueError, match=message):
            _core.rows_of_reports(*given, 1, 0.0, 1.0, None)
