"""transformers' AttentionInterface is as it was whenever no model is recorded or rescaled."""

import importlib
import sys

import critbeta.hf
import pytest
import torch
import transformers
from hf_models import tiny, tokens
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ORIGINAL = AttentionInterface.__dict__["get_interface"]


def untouched():
    return AttentionInterface.__dict__["get_interface"] is ORIGINAL and "__getitem__" not in vars(AttentionInterface)


def recorded(model, x):
    with critbeta.hf.record(model) as rec, torch.no_grad():
        model(x)
    return rec.recorded


def test_the_interface_is_changed_only_while_a_session_is_open():
    model, x = tiny("llama"), tokens(1, 20)
    assert untouched()
    with critbeta.hf.record(model):
        assert not untouched()
        handle = critbeta.hf.rescale(model, "fixed:1.5")
    assert not untouched()
    handle.remove()
    handle.remove()
    assert untouched()
    with pytest.raises(ValueError, match="unknown name"):
        critbeta.hf.rescale(model, "nonsense")
    with pytest.raises(ZeroDivisionError), critbeta.hf.record(model):
        1 / 0
    assert untouched() and recorded(model, x) == 2 * 6 * 20 and untouched()


def test_a_package_that_is_imported_twice_counts_once():
    model, x = tiny("llama"), tokens(1, 20)
    with torch.no_grad():
        plain = model(x).logits
    first = critbeta.hf
    names = [name for name in sys.modules if name.partition(".")[0] == "critbeta"]
    kept = {name: sys.modules.pop(name) for name in names}
    try:
        second = importlib.import_module("critbeta.hf")
        assert second is not first and untouched()
        with first.record(model) as outer, second.record(model) as inner, torch.no_grad():
            assert torch.equal(model(x).logits, plain)
        assert outer.recorded == inner.recorded == 2 * 6 * 20
        with first.rescale(model, "fixed:1.5"), torch.no_grad():
            once = model(x).logits
        with first.rescale(model, "critical:resolve=0.69,cap=8"), torch.no_grad():
            measured = model(x).logits
        with second.rescale(model, "critical:resolve=0.69,cap=8"), torch.no_grad():
            assert torch.equal(model(x).logits, measured)
        with second.rescale(model, "fixed:1.5"), torch.no_grad():
            assert torch.equal(model(x).logits, once)
            with pytest.raises(ValueError, match="rescaled already"):
                first.rescale(model, "fixed:1.5")
        importlib.reload(sys.modules["critbeta.hf._interface"])
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "critbeta"]:
            del sys.modules[name]
        sys.modules.update(kept)
    with torch.no_grad():
        assert torch.equal(model(x).logits, plain)
        with critbeta.hf.rescale(model, "critical:resolve=0.69,cap=8"):
            assert torch.equal(model(x).logits, measured)
    assert untouched()


def test_a_file_that_is_loaded_again_within_a_session_changes_nothing():
    model, x = tiny("llama"), tokens(1, 20)
    with critbeta.hf.record(model) as rec, torch.no_grad():
        importlib.reload(critbeta.hf._interface)
        model(x)
    assert rec.recorded == 2 * 6 * 20 and untouched()


def test_remote_code_takes_functions_as_items():
    model, x = tiny("llama"), tokens(1, 20)
    kind = type(model.model.layers[0].self_attn)

    class Remote(kind):
        def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
            function = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
            shape = (*hidden_states.shape[:-1], -1, self.head_dim)
            projections = (self.q_proj, self.k_proj, self.v_proj)
            q, k, v = (of(hidden_states).view(shape).transpose(1, 2) for of in projections)
            out, weights = function(self, q, k, v, attention_mask, scaling=self.scaling, dropout=0.0)
            return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), weights

    for layer in model.model.layers:
        layer.self_attn.__class__ = Remote
    assert recorded(model, x) == 2 * 6 * 20
    with torch.no_grad():
        plain = model(x).logits
        with critbeta.hf.rescale(model, "fixed:1.5"):
            assert not torch.equal(model(x).logits, plain)
    # Such code has a branch for eager attention that no lookup sees.
    Remote.forward = lambda self, hidden_states, **kwargs: (self.o_proj(self.q_proj(hidden_states)), None)
    with critbeta.hf.rescale(model, "fixed:1.5"), pytest.raises(RuntimeError, match="was not rescaled. Load"):
        model(x)


def test_a_function_that_calls_another_is_rescaled_once():
    def mine(module, *args, **kwargs):
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)

    AttentionInterface.register("mine", mine)
    transformers.masking_utils.AttentionMaskInterface.register("mine", transformers.masking_utils.sdpa_mask)
    model, sdpa, x = tiny("llama", "mine"), tiny("llama"), tokens(1, 20)
    for rule in ("fixed:1.5", "ssmax:s=0.4", "critical:resolve=0.69,cap=8"):
        with critbeta.hf.rescale(model, rule), critbeta.hf.rescale(sdpa, rule), torch.no_grad():
            torch.testing.assert_close(model(x).logits, sdpa(x).logits)
    assert recorded(model, x) == 2 * 6 * 20


class Calls(torch.nn.Module):
    """As some adapters do: it calls the forward of a model, past its hooks."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.forward(x)


def test_a_model_whose_forward_is_called_has_its_layers_once():
    model = Calls(tiny("llama").model)
    with critbeta.hf.record(model) as rec, torch.no_grad():
        for seed in range(3):
            model(tokens(1, 20, seed=seed))
    assert set(rec.rows.layer.tolist()) == {f"model.layers.{layer}.self_attn" for layer in (0, 1)}
    assert rec.recorded == 3 * 2 * 6 * 20


@pytest.mark.parametrize("rule", ["fixed:1.5", "critical:resolve=0.69"])
def test_a_model_that_was_compiled_before_is_met(rule):
    model, x = tiny("llama"), tokens(1, 20)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        plain = compiled(x).logits
        for _ in range(2):
            assert recorded(compiled, x) == 2 * 6 * 20
            with critbeta.hf.rescale(model, rule):
                found, wanted = compiled(x).logits, model(x).logits
            torch.testing.assert_close(found, wanted)
            assert not torch.allclose(found, plain)
            assert torch.equal(compiled(x).logits, plain)
