"""The operators inside torch: its own checks, compilation, gradients, batching."""

import contextlib

import critbeta
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import critbeta.torch  # noqa: E402
from critbeta import Rescaling  # noqa: E402

OPS = torch.ops.critbeta
jacobian = torch.autograd.functional.jacobian
# torch itself warns when parts of it start.
pytestmark = pytest.mark.filterwarnings("default")


def drawn(*shape, dtype=torch.float32, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def samples():
    scores, wide = drawn(3, 4, 50), drawn(6, 100)
    masked = scores.clone()
    masked[..., 30:] = -torch.inf
    lens, positions = torch.tensor([50, 20, 3, 0]), torch.tensor(99)
    for given in [
        (scores, "fixed:1.3"),
        (masked, "critical:ratio=1", positions, lens),
        (wide[:, 10:70], "su"),
        (wide[0], "velickovic"),
        (scores.bfloat16(), "qwen-logn:train=9", positions),
        (scores.double(), "identity"),
        (scores[:0], "identity"),
    ]:
        given = (*given, None, None)[:4]
        yield "softmax", given
        yield "softmax", (given[0].clone().requires_grad_(), *given[1:])
        yield "softmax_stats", given
        dtype = torch.float32 if given[0].dtype == torch.float64 else given[0].dtype
        out = torch.empty(given[0].shape, dtype=dtype)
        yield "softmax_out", (*given, out)
        yield "softmax_stats_out", (*given, out)
        yield "critical_beta", (given[0], 0.69)


@pytest.mark.parametrize(("name", "given"), [pytest.param(*sample, id=sample[0]) for sample in samples()])
def test_opcheck(name, given):
    torch.library.opcheck(getattr(OPS, name).default, given)


# Earlier versions of torch.compile took no objects of compiled types as constants.
TAKES_RESCALINGS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)
CAPPED = Rescaling.parse("critical:cap=8") if TAKES_RESCALINGS else "critical:cap=8"


def with_stats(scores):
    found, row_stats = critbeta.softmax(scores, CAPPED, lens=torch.tensor([50, 20, 3, 0]), return_stats=True)
    return found * 2, row_stats.beta + row_stats.n


def into(scores):
    out = torch.empty_like(scores)
    critbeta.softmax(scores, "su", out=out)
    return out + 1, critbeta.critical_beta(scores, 0.5)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("function", [with_stats, into])
def test_a_whole_function_is_compiled(function, backend):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for scores in (drawn(3, 4, 50), drawn(2, 4, 60, seed=2)):
        for found, expected in zip(compiled(scores), function(scores)):
            assert torch.equal(found, expected)


def test_compiled_gradients_and_other_rescalings_are_the_eager_ones():
    torch._dynamo.reset()
    function = lambda scores, rule: (critbeta.softmax(torch.tanh(scores), rule) ** 2).sum()  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    rules = ["fixed:2", *map(Rescaling.parse, ["fixed:3", "identity"] if TAKES_RESCALINGS else []), "su"]
    for rule in rules:
        scores = drawn(3, 50, dtype=torch.float64).requires_grad_()
        (found,), (expected,) = (torch.autograd.grad(f(scores, rule), scores) for f in (compiled, function))
        torch.testing.assert_close(found, expected)


def test_a_bad_rescaling_is_an_error_of_compilation():
    torch._dynamo.reset()
    with pytest.raises(Exception, match="unknown rescaling|no such law"):
        function = lambda s: critbeta.softmax(s, "no such law")  # noqa: E731
        torch.compile(function, fullgraph=True, backend="aot_eager")(drawn(3, 8))


def eager(scores, beta):
    """The softmax of rows without a NaN. Rows at beta = inf do not move with their scores."""
    beta = torch.where(beta.isinf(), 0.0, beta).unsqueeze(-1)
    return torch.softmax(torch.where(scores == -torch.inf, scores, beta * scores), -1)


DIFFERENTIABLE = [
    "identity",
    "fixed:1.3",
    "fixed:0",
    "su",
    "qwen-logn:train=9",
    "calibrated:c=0.5,xi=0.7,anchor=30",
    "critical:ratio=1",
    "critical:resolve=0.69,cap=3",
    "velickovic",
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", DIFFERENTIABLE)
def test_gradients_are_those_of_an_eager_softmax_at_the_same_beta(rule, dtype):
    scores = drawn(5, 40, dtype=dtype)
    scores[1, 20:] = -torch.inf
    weights = drawn(5, 40, seed=2)
    scores.requires_grad_()
    found, row_stats = critbeta.softmax(scores, rule, return_stats=True)
    (found,) = torch.autograd.grad((found * weights.to(dtype)).sum(), scores)
    wide = scores.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad((eager(wide, row_stats.beta) * weights.to(dtype).double()).sum(), wide)
    scale = float(expected.abs().max())
    error = {torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}.get(dtype, 2.0**-18)
    assert found.dtype == dtype and torch.allclose(found.double(), expected, rtol=0.0, atol=error * scale)
    assert not found[1, 20:].any()


@pytest.mark.parametrize("rule", ["identity", "fixed:1.3", "su", "calibrated:c=0.5,xi=0.7"])
def test_gradients_are_finite_differences(rule):
    scores, weights, step = drawn(30, dtype=torch.float64), drawn(30, dtype=torch.float64, seed=2), 2.0**-7
    function = lambda s: (critbeta.softmax(s, rule) * weights).sum()  # noqa: E731
    (found,) = torch.autograd.grad(function(scores.requires_grad_()), scores)
    with torch.no_grad():
        for at in range(30):
            aside = torch.zeros_like(scores)
            aside[at] = step
            difference = (function(scores + aside) - function(scores - aside)) / (2 * step)
            # The error is the third derivative, and the rounding of float32 probabilities.
            assert abs(difference - found[at]) < 2e-4 * float(found.abs().max()) + 2.0**-22 / step, at


def test_second_derivatives_are_those_of_an_eager_softmax():
    scores, weights = drawn(20, dtype=torch.float64).requires_grad_(), drawn(20, dtype=torch.float64, seed=2)

    def twice(function):
        (first,) = torch.autograd.grad((function(scores) * weights).sum(), scores, create_graph=True)
        return torch.autograd.grad((first * weights.flip(0)).sum(), scores)[0]

    found = twice(lambda s: critbeta.softmax(s, "fixed:1.3"))
    expected = twice(lambda s: eager(s, torch.tensor(1.3)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_gradients_of_rows_that_have_none():
    tied = torch.tensor([3.0, 3.0, 1.0, 0.0, 0.0, 0.0])
    scores = torch.stack([drawn(6), torch.full((6,), -torch.inf), drawn(6), tied])
    scores[2, 3] = torch.nan
    scores.requires_grad_()
    # Tied rows run at beta = inf, and there the softmax does not move.
    found, row_stats = critbeta.softmax(scores, "critical:ratio=1", return_stats=True)
    assert row_stats.beta[3] == torch.inf and found[3].tolist() == [0.5, 0.5, 0, 0, 0, 0]
    (gradient,) = torch.autograd.grad((found * drawn(6, seed=2)).sum(), scores)
    assert gradient[0].isfinite().all() and gradient[0].any()
    assert not gradient[1].any() and gradient[2].isnan().all() and not gradient[3].any()
    (gradient,) = torch.autograd.grad(critbeta.softmax(scores, "fixed:1e300")[0].sum(), scores)
    assert not gradient[0].isnan().any()


def test_constants_have_no_gradient():
    scores = drawn(3, 20).requires_grad_()
    found, row_stats = critbeta.softmax(scores, return_stats=True)
    assert found.requires_grad and not any(column.requires_grad for column in row_stats)
    assert not critbeta.critical_beta(scores).requires_grad
    with torch.no_grad():
        assert critbeta.softmax(scores, out=torch.empty(3, 20)).shape == (3, 20)
    assert not critbeta.softmax(drawn(3, 20)).requires_grad


def test_batching_adds_a_leading_dimension():
    scores, lens = drawn(5, 3, 40), torch.tensor([3, 40, 17])
    by_row = lambda s, lens: critbeta.softmax(s, "su", lens=lens, return_stats=True)  # noqa: E731
    for in_dims, given in [
        ((1, 0), (scores, lens)),
        ((1, None), (scores, torch.tensor(20))),
        ((None, 0), (scores[:, 0], lens)),
    ]:
        found, row_stats = torch.vmap(by_row, in_dims=in_dims)(*given)
        for at in range(3):
            one = [value if dim is None else value.select(dim, at) for value, dim in zip(given, in_dims)]
            expected, columns = by_row(*one)
            assert torch.equal(found[at], expected) and torch.equal(row_stats.n[at], columns.n)
    each = torch.vmap(critbeta.critical_beta, in_dims=1)(scores)
    assert torch.equal(each, critbeta.critical_beta(scores).T)
    # torch takes no gradient of an operator under torch.func; critbeta.softmax has one (test_traced.py).
    operator = torch.ops.critbeta.softmax
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda s: operator(s, "fixed:1", None, None)[0].sum())(scores)


def compiled_jvp(f, x, t):
    return torch.compile(lambda x: torch.func.jvp(f, (x,), (t,)), fullgraph=True, backend="eager")(x)


FORWARD = {
    "jvp": lambda f, x, t: torch.func.jvp(f, (x,), (t,)),
    "jacfwd": lambda f, x, t: torch.func.jacfwd(f)(x),
    "jvp of vmap": lambda f, x, t: torch.func.jvp(torch.vmap(f), (x,), (t,)),
    "vmap of jvp": lambda f, x, t: torch.vmap(lambda x, t: torch.func.jvp(f, (x,), (t,)))(x, t),
    "jacobian": lambda f, x, t: jacobian(f, x, strategy="forward-mode", vectorize=True),
    "dual": lambda f, x, t: f(torch.autograd.forward_ad.make_dual(x, t)),
    "compiled": compiled_jvp,
}


@pytest.mark.parametrize("transform", FORWARD)
def test_forward_mode_is_refused_and_never_zero(transform):
    scores, tangent = drawn(3, 8), drawn(3, 8, seed=2)
    functions = [lambda s: critbeta.softmax(s, "fixed:2")]
    functions.append(lambda s: critbeta.softmax(s, return_stats=True)[0])
    if transform == "dual":
        functions.append(lambda s: OPS.softmax(s, "fixed:2")[0])
    for function in functions:
        with torch.autograd.forward_ad.dual_level() if transform == "dual" else contextlib.nullcontext():
            message = "no forward-mode derivative|Batching rule|Observed exception"
            with pytest.raises(Exception, match=message) as found:
                FORWARD[transform](function, scores, tangent)
            assert transform in ("compiled", "jvp of vmap") or type(found.value) is NotImplementedError
        # A softmax that does not depend on the tangent works.
        torch.func.jvp(lambda s: s * function(scores), (tangent,), (tangent,))


def test_an_exported_program_holds_the_operator():
    class Module(torch.nn.Module):
        def forward(self, scores):
            return critbeta.softmax(scores, "su")

    exported = torch.export.export(Module(), (drawn(3, 20),))
    assert "critbeta.softmax" in exported.graph_module.code
    assert torch.equal(exported.module()(drawn(3, 20, seed=3)), critbeta.softmax(drawn(3, 20, seed=3), "su"))
    assert np.isfinite(exported.module()(drawn(3, 20)).numpy()).all()


@pytest.mark.parametrize("name", ["stats", "gap_count", "diagnose"])
def test_functions_that_return_no_tensors_break_the_graph(name):
    figures = {
        "stats": lambda x: critbeta.stats(x).critical_beta.sum(),
        "gap_count": lambda x: critbeta.gap_count(x[0]).counts.sum(),
        "diagnose": lambda x: critbeta.diagnose(x).rows.entropy.sum(),
    }
    function = lambda x: torch.tanh(x + 1).sum() * float(figures[name](x * 2))  # noqa: E731
    torch._dynamo.reset()
    scores = drawn(3, 40)
    torch.testing.assert_close(torch.compile(function, backend="eager")(scores), function(scores))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        torch.compile(function, backend="eager", fullgraph=True)(scores)
