"""Tensors without numbers: torch.export, torch.func, vmap, meta and fake tensors work, or end in our error."""

import critbeta
import critbeta.hf
import pytest
import torch
from hf_models import tiny, tokens
from torch import func
from torch._subclasses import FakeTensorMode

SCORES = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
NUMBERS = SCORES.numpy()
RULES = ["ssmax:s=0.4", "critical:ratio=1", "qwen-logn:train=4"]


def loss(rule):
    return lambda scores: (critbeta.softmax(scores, rule) * torch.arange(8)).sum()


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_torch_func_are_those_of_backward(rule):
    scores = SCORES.clone().requires_grad_()
    loss(rule)(scores).backward()
    assert scores.grad.abs().max() > 0.01
    torch.testing.assert_close(func.grad(loss(rule))(SCORES), scores.grad)
    out, pull = func.vjp(lambda x: critbeta.softmax(x, rule), SCORES)
    torch.testing.assert_close(pull(torch.arange(8.0).expand(3, 8))[0], scores.grad)
    torch.testing.assert_close(out, critbeta.softmax(SCORES, rule))
    by_row = func.vmap(func.grad(loss(rule)))(SCORES)
    torch.testing.assert_close(by_row, scores.grad)
    assert func.jacrev(lambda x: critbeta.softmax(x, rule))(SCORES[0]).shape == (8, 8)


def test_statistics_beside_a_gradient_are_constants():
    def of(scores):
        probabilities, stats = critbeta.softmax(scores, "critical:ratio=1", return_stats=True)
        return (probabilities * torch.arange(8)).sum() + stats.beta.sum()

    torch.testing.assert_close(func.grad(of)(SCORES), func.grad(loss("critical:ratio=1"))(SCORES))
    scaled = func.grad(lambda x: (x * critbeta.critical_beta(x)[:, None]).sum().float())(SCORES)
    torch.testing.assert_close(scaled, critbeta.critical_beta(SCORES)[:, None].expand(3, 8).float())


@pytest.mark.parametrize(
    "transform, of", [(func.jacfwd, "softmax"), (func.hessian, "softmax"), (func.jacfwd, "critical_beta")]
)
def test_forward_mode_is_refused_by_name(transform, of):
    function = loss("ssmax:s=0.4") if of == "softmax" else critbeta.critical_beta
    with pytest.raises(
        NotImplementedError, match=f"critbeta.{of} of scores.* has no forward-mode derivative"
    ):
        transform(function)(SCORES)


def with_numbers(scores):
    """The functions that read numbers."""
    return [
        lambda: critbeta.stats(scores),
        lambda: critbeta.diagnose(scores=scores),
        lambda: critbeta.diagnose(q=scores.expand(2, *scores.shape), k=scores.expand(2, *scores.shape)),
        lambda: critbeta.gap_count(scores[0] if scores.ndim > 1 else scores),
        lambda: critbeta.stats(NUMBERS, lens=scores[..., 0].long()),
    ]


@pytest.mark.parametrize("number", range(5))
def test_functions_that_read_numbers_refuse_tensors_without_them(number):
    def one(scores):
        with pytest.raises(
            ValueError, match="(FakeTensor|on meta|traced by).*: expected data, on the CPU; critbeta"
        ):
            with_numbers(scores)[number]()
        return scores.sum()

    one(SCORES.to("meta"))
    func.grad(one)(SCORES)
    func.vmap(one)(SCORES[None])
    func.jvp(one, (SCORES,), (SCORES,))
    with FakeTensorMode() as mode:
        one(mode.from_tensor(SCORES))
    one(mode.from_tensor(SCORES))


class Reads(torch.nn.Module):
    def forward(self, scores):
        return torch.from_numpy(critbeta.stats(scores).critical_beta)


class Softmax(torch.nn.Module):
    def forward(self, scores):
        return critbeta.softmax(scores, "ssmax:s=0.4"), critbeta.critical_beta(scores)


@pytest.mark.parametrize("strict", [False, True])
def test_operators_are_exported_and_functions_that_read_numbers_are_refused(strict):
    probabilities, beta = torch.export.export(Softmax(), (SCORES,), strict=strict).module()(SCORES)
    assert torch.equal(probabilities, critbeta.softmax(SCORES, "ssmax:s=0.4"))
    assert torch.equal(beta, critbeta.critical_beta(SCORES))
    expected = (
        "call them outside of torch.export"
        if strict
        else "a FakeTensor, as under torch.export: expected data"
    )
    with pytest.raises(Exception, match=expected):
        torch.export.export(Reads(), (SCORES,), strict=strict)


def gradients(model, x):
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    return func.grad(lambda given: func.functional_call(model, given, (x,)).logits.square().mean())(
        parameters
    )


def under_vmap(model, x):
    return func.vmap(lambda one: model(one[None], use_cache=False).logits)(x.expand(2, -1))


def under_fake(model, x):
    with FakeTensorMode(allow_non_fake_inputs=True):
        return model(x)


def under_jvp(model, x):
    given = {name: value.detach() for name, value in model.named_parameters()}
    return func.jvp(lambda of: func.functional_call(model, of, (x,)).logits, (given,), (given,))


# torch.func.jvp warns when it is met first.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
TRACES = {
    "export": lambda model, x: torch.export.export(
        model, (), dict(input_ids=x, use_cache=False), strict=False
    ),
    "strict": lambda model, x: torch.export.export(
        model, (), dict(input_ids=x, use_cache=False), strict=True
    ),
    "grad": gradients,
    "vmap": under_vmap,
    "fake": under_fake,
    "jvp": under_jvp,
    "meta": lambda model, x: model.to("meta")(x.to("meta")),
}


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("use", ["record", "ssmax:s=0.43", "critical:resolve=1"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_model_in_use_is_not_traced(trace, use, kind):
    model, x = tiny(kind), tokens(1, 12)
    expected = model(x).logits
    opened = critbeta.hf.record(model) if use == "record" else critbeta.hf.rescale(model, use)
    with pytest.raises(
        Exception, match="critbeta.hf.*needs a model that runs|critbeta.hf records or rescales"
    ) as found:
        with opened:
            TRACES[trace](model, x)
    assert "leave" in str(found.value).lower() and "with block" in str(found.value)
    assert trace == "strict" or isinstance(found.value, ValueError)
    if trace != "meta":
        assert torch.equal(model(x).logits, expected)
