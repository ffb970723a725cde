"""Calibrations meet the layers of a model: those that never run, that run often, and that have other names."""

import json

import critbeta.hf
import pytest
import torch
import transformers
from hf_models import SIZES, tiny, tokens
from torch import nn


def bart():
    sizes = dict(d_model=48, decoder_layers=2, encoder_layers=2, decoder_ffn_dim=64, encoder_ffn_dim=64)
    heads = dict(decoder_attention_heads=6, encoder_attention_heads=6)
    torch.manual_seed(0)
    return transformers.BartForCausalLM(transformers.BartConfig(vocab_size=97, **sizes, **heads)).eval()


def albert():
    sizes = dict(vocab_size=97, embedding_size=16, hidden_size=48, num_hidden_layers=3, intermediate_size=64)
    torch.manual_seed(0)
    config = transformers.AlbertConfig(**sizes, num_attention_heads=6, initializer_range=0.3)
    return transformers.AlbertModel(config).eval()


def calibrated(model, path, *texts):
    with critbeta.hf.record(model, rows=200) as rec, torch.no_grad():
        for text in texts:
            model(text)
    rec.rows.to_calibration(path)
    return rec


@pytest.mark.filterwarnings("ignore:.*(not recorded|inconclusive)")
def test_layers_that_never_run_need_no_laws(tmp_path):
    path = tmp_path / "runs,lr=0.1" / "cal,seed=3.json"
    path.parent.mkdir()
    model, x = bart(), tokens(1, 200)
    rec = calibrated(model, path, x)
    assert set(rec.rows.layer) == {f"model.decoder.layers.{layer}.self_attn" for layer in (0, 1)}
    with torch.no_grad():
        plain = model(x).logits
        with critbeta.hf.rescale(model, f"calibrated:{path}"):
            assert not torch.equal(model(x).logits, plain)
            encoded = dict(encoder_hidden_states=torch.zeros(1, 5, 48), use_cache=False)
            with pytest.raises(ValueError, match=r"does not cover model\.decoder\.layers\.0\.encoder_attn, which"):
                model(x, **encoded)


@pytest.mark.filterwarnings("ignore:.*inconclusive")
def test_a_module_that_runs_as_several_layers_has_a_law_for_each(tmp_path):
    model, x = albert(), tokens(1, 200)
    rec = calibrated(model, tmp_path / "cal.json", x)
    layers = list(dict.fromkeys(rec.rows.layer))
    assert layers == [layers[0], f"{layers[0]}#1", f"{layers[0]}#2"] and rec.recorded == 3 * 6 * 200
    assert len(rec.save(tmp_path / "kept.safetensors")) == 1
    with torch.no_grad(), critbeta.hf.rescale(model, f"calibrated:{tmp_path / 'cal.json'}"):
        with critbeta.hf.record(model, rows=200) as again:
            found = model(x).last_hidden_state
    assert list(dict.fromkeys(again.rows.layer)) == layers
    first = rec.rows.layer == layers[0]
    assert (again.rows.critical_beta[first] == rec.rows.critical_beta[first]).all()
    # A fixed law for the last layer alone changes that layer alone.
    document = json.loads((tmp_path / "cal.json").read_text())
    for head in document["heads"]:
        last = head["layer"] == layers[2]
        head["critical"] = {"c": 2.0 if last else 1.0, "xi": 0.0, "conclusive": True, "interval": [0.0, 0.0]}
    (tmp_path / "last.json").write_text(json.dumps(document))
    with torch.no_grad(), critbeta.hf.rescale(model, f"calibrated:{tmp_path / 'last.json'}"):
        with critbeta.hf.record(model, rows=200) as last:
            assert not torch.equal(model(x).last_hidden_state, found)
    assert (last.rows.critical_beta == rec.rows.critical_beta).all()


class Around(nn.Module):
    """As adapters do: the model under a longer name."""

    def __init__(self, model):
        super().__init__()
        self.base_model = nn.ModuleDict({"model": model})

    def forward(self, *args, **kwargs):
        return self.base_model["model"](*args, **kwargs)


@pytest.mark.filterwarnings("ignore:.*inconclusive")
def test_calibrations_are_those_of_the_model_within_or_around(tmp_path):
    model, x, path = tiny("llama"), tokens(1, 200), tmp_path / "cal.json"
    calibrated(model, path, x)
    with torch.no_grad(), critbeta.hf.rescale(model, f"calibrated:{path}"):
        expected = model(x).logits
    for part in (model.model, Around(model)):
        with torch.no_grad(), critbeta.hf.rescale(part, f"calibrated:{path}"):
            assert torch.equal(model(x).logits, expected)
    inner = tmp_path / "inner.json"
    calibrated(model.model, inner, x)
    assert "model.layers" not in inner.read_text()
    with torch.no_grad(), critbeta.hf.rescale(Around(model), f"calibrated:{inner}"):
        assert torch.equal(model(x).logits, expected)
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 1}))
    with pytest.raises(ValueError, match=r"has laws of model\.layers\.1\.self_attn, which the model does not"):
        critbeta.hf.rescale(other, f"calibrated:{path}")
