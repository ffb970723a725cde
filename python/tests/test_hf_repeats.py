"""Bit-equal rows count once: copies of a text, beams, common beginnings, and layers that attend twice."""

import critbeta.hf
import numpy as np
import pytest
import torch
import transformers
from critbeta import _core
from hf_models import tiny, tokens

ROWS = 2 * 6


def places(rec):
    rows = rec.rows
    columns = (rows.layer, rows.head, rows.position, rows.critical_beta)
    return sorted(zip(*(column.tolist() for column in columns)))


def recorded(model, *texts, **settings):
    with critbeta.hf.record(model, **{"rows": 100, **settings}) as rec, torch.no_grad():
        for text in texts:
            model(text)
    return rec


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "bert"])
def test_copies_of_a_text_are_one_text(kind, tmp_path):
    model, x = tiny(kind), tokens(1, 30)
    once = recorded(model, x)
    assert once.recorded == ROWS * 30
    # The texts of a batch may be rounded differently in places, so not all of their rows are bit-equal.
    assert ROWS * 30 <= recorded(model, x.expand(8, -1)).recorded < 2 * ROWS * 30
    two = recorded(model, x, x)
    assert places(two) == places(once)
    assert len(two.save(tmp_path / "kept.safetensors")) == 1


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_common_beginning_counts_once(kind):
    model, begin = tiny(kind), tokens(1, 20)
    texts = [torch.cat([begin, tokens(1, 10, seed=seed)], 1) for seed in (1, 2, 3)]
    assert recorded(model, *texts).recorded == ROWS * (20 + 3 * 10)
    other = recorded(model, *(tokens(1, 30, seed=seed) for seed in (1, 2, 3)))
    assert other.recorded == ROWS * 3 * 30


def test_masked_keys_around_a_row_make_no_new_row():
    recording, positions = _core.Recording(0.0, 0), np.arange(5)
    heads = 2

    def new_rows(layer, scores, positions):
        before = recording.count()
        texts = _core.Texts([(0, 0, len(positions), 0, 0, scores.shape[2])], positions)
        recording.add(layer, texts, None, scores[None].numpy())
        found = recording.rows().column("position")[before:]
        assert len(found) % heads == 0
        return found[: len(found) // heads].tolist()

    scores = torch.randn(heads, 5, 9, generator=torch.Generator().manual_seed(0))
    scores[:, torch.arange(9) > torch.arange(5)[:, None] + 2] = -torch.inf
    assert new_rows("layer", scores, positions) == [0, 1, 2, 3, 4]
    wider = torch.nn.functional.pad(scores, (3, 4), value=-torch.inf)
    assert new_rows("layer", wider, positions) == []
    wider[1, 2, 4] += 1e-6
    assert new_rows("layer", wider, positions) == [2]
    assert new_rows("layer", wider, positions + 1) == [1, 2, 3, 4, 5]
    assert new_rows("other", wider, positions) == [0, 1, 2, 3, 4]


def test_rows_that_differ_in_one_key_are_two_rows():
    model, x = tiny("llama", num_hidden_layers=1), tokens(1, 30)

    def changed(_, given, keys):
        keys = keys.clone()
        keys[0, 15, 0] += 1e-3
        return keys

    with critbeta.hf.record(model, rows=100) as rec, torch.no_grad():
        model(x)
        model.model.layers[0].self_attn.k_proj.register_forward_hook(changed)
        model(x)
    assert rec.recorded == 6 * (30 + 15)
    assert np.bincount(rec.rows.position).tolist() == [6] * 15 + [12] * 15


def test_beams_make_no_independent_rows():
    model, x = tiny("llama"), tokens(1, 200)
    rows = []
    for beams in (1, 8):
        with critbeta.hf.record(model) as rec, torch.no_grad():
            model.generate(x, num_beams=beams, max_new_tokens=1, do_sample=False)
        rows.append(rec.recorded)
    assert rows[0] <= rows[1] < 2 * rows[0]


def test_a_layer_that_attends_twice_has_its_rows_once():
    sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    config = transformers.DiffLlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    torch.manual_seed(0)
    model = transformers.DiffLlamaForCausalLM(config).eval()
    rec = recorded(model, tokens(1, 20))
    assert rec.recorded == 2 * 4 * 20
    layers = [f"model.layers.{layer}.self_attn" for layer in (0, 1)]
    assert list(dict.fromkeys(rec.rows.layer.tolist())) == layers


def test_steps_of_a_text_are_all_counted():
    model, x, cache = tiny("llama"), tokens(1, 30), None
    with critbeta.hf.record(model, rows=100) as rec, torch.no_grad():
        for step in range(30):
            cache = model(x[:, step : step + 1], cache=cache, use_cache=True).past_key_values
    assert rec.recorded == ROWS * 30
