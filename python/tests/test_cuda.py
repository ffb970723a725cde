"""Tests that need a GPU: streams, graphs, no waiting, compilation. test_device.py compares the numbers.

Without a GPU they are skipped by name; CRITBETA_REQUIRE_GPU=1 turns the skip into a failure.
"""

import os
import subprocess
import sys

import critbeta
import pytest

torch = pytest.importorskip("torch")
import critbeta.torch  # noqa: E402
from critbeta import _cuda  # noqa: E402

if not torch.cuda.is_available() and not os.environ.get("CRITBETA_REQUIRE_GPU"):
    pytest.skip("no GPU here", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module", autouse=True)
def loaded():
    """Loads the kernels before any stream or capture, and logs them."""
    print(_cuda.engine(torch.device("cuda", torch.cuda.current_device())).description)


def drawn(*shape, dtype=torch.float32, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).cuda()


def test_results_stay_on_the_device_in_the_dtype_of_scores():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        scores = drawn(2, 3, 500, dtype=dtype)
        found, row_stats = critbeta.softmax(scores, return_stats=True)
        assert found.device == scores.device and found.dtype == dtype and found.shape == scores.shape
        assert all(column.device == scores.device and column.shape == (2, 3) for column in row_stats)
        beta = critbeta.critical_beta(scores)
        assert beta.device == scores.device and beta.dtype == torch.float64
        stats = critbeta.stats(scores)
        assert stats.shape == (2, 3) and (abs(stats.critical_beta / beta.cpu().numpy() - 1) < 2.0**-50).all()


def test_nothing_waits_for_the_device():
    scores, lens, positions = drawn(64, 5000), torch.full((64,), 4000).cuda(), torch.arange(64).cuda()
    out, before = torch.empty_like(scores), torch.cuda.get_sync_debug_mode()
    wanted = scores.clone().requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for rule in ("critical:ratio=1", "qwen-logn:train=100", "velickovic"):
            critbeta.softmax(scores, rule, lens=lens, return_stats=True)
            critbeta.softmax(scores, rule, lens=lens, positions=positions, out=out)
        critbeta.softmax(wanted, "su").sum().backward()
        critbeta.critical_beta(scores, 0.69)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert wanted.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(256, 4096), (2, 500_000)])
def test_side_streams_see_their_own_work(shape):
    """Streams write their scores just before a call and free them just after. Long rows take a workspace."""
    expected = [critbeta.softmax(drawn(*shape, seed=seed)) for seed in range(4)]
    sources = [drawn(*shape, seed=seed) for seed in range(4)]
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in range(4)], [None] * 4
    for turn in range(10):
        for at, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                scores = torch.full(shape, torch.nan, device="cuda")
                scores.copy_(sources[at])
                found[at] = critbeta.softmax(scores)
                del scores
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


@pytest.mark.parametrize("shape", [(64, 3000), (2, 500_000)])
def test_a_cuda_graph_captures_and_replays(shape):
    scores, out = drawn(*shape), torch.empty(shape, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        critbeta.softmax(scores, "critical:cap=8", out=out)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        critbeta.softmax(scores, "critical:cap=8", out=out)
        betas = critbeta.critical_beta(scores)
    for seed in (2, 3):
        scores.copy_(drawn(*shape, seed=seed))
        graph.replay()
        assert torch.equal(out, critbeta.softmax(scores, "critical:cap=8")) and torch.equal(
            betas, critbeta.critical_beta(scores)
        )


def pages_of(lens, seed=1):
    """What `torch.ops.critbeta.measure` takes: sequences of up to 64 keys in pages of 16, one token each."""
    kind = torch.bfloat16
    q, k = drawn(len(lens), 8, 64, dtype=kind, seed=seed), drawn(40, 16, 2, 64, dtype=kind)
    tables = torch.arange(4 * len(lens), dtype=torch.int32, device="cuda").view(-1, 4)
    words = tables, None, torch.tensor(lens, dtype=torch.int32, device="cuda"), None
    return q, k, *words, None, ["critical:cap=8"], "NHD", None, None, 0.0


def test_measuring_pages_does_not_wait_and_a_graph_replays_it_for_other_lengths():
    measure, given = torch.ops.critbeta.measure, pages_of([64, 9, 1])
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        measure(*given)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = measure(*given)
    for lens in ([64, 9, 1], [3, 0, 64], [0, 0, 17]):
        other = pages_of(lens, seed=len(lens) + lens[0])
        given[0].copy_(other[0])
        given[4].copy_(other[4])
        graph.replay()
        assert all(torch.equal(one, wanted) for one, wanted in zip(found, measure(*other)))
    torch.library.opcheck(measure.default, given)


def with_everything(scores):
    found, row_stats = critbeta.softmax(torch.tanh(scores) * 4, "critical:cap=8", return_stats=True)
    out = torch.empty_like(scores)
    critbeta.softmax(scores, "su", out=out)
    return found * 2, row_stats.beta + row_stats.n, out + 1


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_whole_function_is_compiled(mode):
    torch._dynamo.reset()
    compiled = torch.compile(with_everything, fullgraph=True, mode=mode)
    for seed in range(3):
        scores = drawn(32, 700, seed=seed)
        # tanh of the compiler and of torch differ in the last bits, and so do the gaps.
        for found, expected in zip(compiled(scores), with_everything(scores)):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    gradient = lambda f, s: torch.autograd.grad(sum(part.sum() for part in f(s)[:1]), s)[0]  # noqa: E731
    scores = drawn(32, 700).requires_grad_()
    weighted = lambda s: [critbeta.softmax(s, "fixed:2") ** 2]  # noqa: E731
    compiled = torch.compile(weighted, fullgraph=True)
    torch.testing.assert_close(gradient(compiled, scores), gradient(weighted, scores))


OPERATORS = ["softmax", "softmax_stats", "softmax_out", "softmax_stats_out", "critical_beta"]


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name):
    scores = drawn(3, 4, 50)
    given = (scores, 0.69) if name == "critical_beta" else (scores, "critical:ratio=1", None, None)
    given = (*given, torch.empty_like(scores)) if name.endswith("out") else given
    operator = getattr(torch.ops.critbeta, name).default
    torch.library.opcheck(operator, given)
    if name in ("softmax", "softmax_stats"):
        torch.library.opcheck(operator, (scores.clone().requires_grad_(), *given[1:]))


softmax = critbeta.softmax
REFUSED = [
    (
        lambda x: softmax(x.double()),
        ValueError,
        r"scores of shape \(3, 8\) are float64 on cuda:0: .*scores\.float\(\)",
    ),
    (lambda x: critbeta.stats(x.double()), ValueError, "float64 on cuda:0"),
    (lambda x: softmax(x, out=x.cpu()), ValueError, r"out is on cpu, scores of shape \(3, 8\) on cuda:0"),
    (lambda x: softmax(x.cpu(), out=x), ValueError, r"out is on cuda:0, scores of shape \(3, 8\) on cpu"),
    (lambda x: softmax(x, out=x.cpu().numpy()), TypeError, "out is ndarray, scores a tensor on cuda:0"),
    (lambda x: softmax(x.cpu().numpy(), out=x), ValueError, "out is on DLPack device 2:0: expected the CPU"),
    (lambda x: softmax(x, lens=torch.tensor([1, 2, 3])), ValueError, "lens is on cpu, scores .* on cuda:0"),
    (lambda x: softmax(x, out=x.half()), ValueError, "probabilities as f16: expected f32"),
    (lambda x: softmax(x.long()), TypeError, "torch.int64"),
    (lambda x: critbeta.diagnose(x), ValueError, r"scores is on DLPack device 2:0: .*scores\.cpu\(\)"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_arguments_that_do_not_fit_are_refused(case):
    given, exception, message = REFUSED[case]
    with pytest.raises(exception, match=message):
        given(torch.zeros(3, 8, device="cuda"))
    assert critbeta.softmax(torch.zeros(2, 4, device="cuda"), "identity").tolist() == [[0.25] * 4] * 2


def test_a_forked_child_gets_an_error_and_does_not_hang():
    code = """
import os, signal, sys
import torch, critbeta
scores = torch.zeros(2, 4, device="cuda")
critbeta.softmax(scores)
child = os.fork()
if child == 0:
    signal.alarm(60)
    try:
        critbeta.softmax(scores)
    except RuntimeError as error:
        os._exit(0)
    os._exit(1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120).returncode == 0
