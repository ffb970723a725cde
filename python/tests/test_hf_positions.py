"""Positions of rows whose attention is given none: windows with a cache, models within models, encoders that
do not say what they are, beams. python/benches/hf_sweep.py looks at every architecture."""

import critbeta.hf
import numpy as np
import pytest
import torch
import transformers
from critbeta.hf._visible import Visible
from hf_models import tiny, tokens
from test_hf_visible import call

SMALL = dict(
    vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=128, initializer_range=0.3,
)  # fmt: skip


def llama4():
    config = transformers.Llama4TextConfig(
        **{**SMALL, "num_hidden_layers": 4}, num_key_value_heads=2, head_dim=8, intermediate_size_mlp=48,
        num_local_experts=2, attention_chunk_size=5,
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.models.llama4.modeling_llama4.Llama4TextModel(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.2)
    return model


def gemma3():
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=32
    )
    text = dict(**SMALL, num_key_value_heads=2, head_dim=8, sliding_window=5)
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**vision, "patch_size": 8}, mm_tokens_per_image=16,
        image_token_index=98, boi_token_index=97, eoi_token_index=96,
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return transformers.Gemma3Model(config).eval()


def layoutlm():
    torch.manual_seed(0)
    return transformers.LayoutLMModel(
        transformers.LayoutLMConfig(**SMALL, attn_implementation="eager")
    ).eval()


def positions(model, *calls):
    """Returns how often each position was recorded, a row and head of a layer."""
    with critbeta.hf.record(model, rows=1000) as rec, torch.no_grad():
        for given in calls:
            model(**given)
    rows = rec.rows
    one = (rows.head == 0) & (rows.layer == rows.layer[0])
    last = (rows.head == 0) & (rows.layer == rows.layer[-1])
    return sorted(rows.position[one].tolist()), sorted(rows.position[last].tolist())


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("make", [llama4, lambda: tiny("mistral", "eager"), lambda: tiny("gemma2")])
def test_rows_of_a_window_with_a_cache_stand_behind_what_it_has_seen(make, steps):
    model, x = make(), tokens(1, 8 + 4 * steps)
    with torch.no_grad():
        cache = model(x[:, :8], use_cache=True).past_key_values
    taken = [dict(input_ids=x[:, 8 + 4 * at : 12 + 4 * at], cache=cache) for at in range(steps)]
    assert positions(model, *taken) == (list(range(8, 8 + 4 * steps)),) * 2


# The images of Gemma 3 are not shown.
silent = pytest.mark.filterwarnings("ignore:.*not recorded, because they did not run")


@silent
@pytest.mark.parametrize("hidden", [slice(0, 4), slice(8, 12)])
def test_padding_reaches_a_model_whose_masks_another_makes(hidden):
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, hidden] = 0
    found = positions(gemma3(), dict(input_ids=tokens(2, 12).clamp(max=90), attention_mask=mask))
    assert found == (sorted([*range(12), *range(8)]),) * 2


@silent
def test_the_padding_of_a_failed_pass_is_forgotten():
    model, mask = gemma3(), torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    with critbeta.hf.record(model, rows=1000) as rec, torch.no_grad():
        failing = model.language_model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=tokens(2, 12).clamp(max=90), attention_mask=mask)
        failing.remove()
        assert rec._session.forward.padding is None and not rec._session.forward.around


def test_encoders_that_do_not_say_what_they_are_have_the_positions_of_their_rows():
    model, mask = layoutlm(), torch.ones(2, 12, dtype=torch.long)
    assert not hasattr(model.encoder.layer[0].attention.self, "is_causal")
    x = tokens(2, 12)
    assert positions(model, dict(input_ids=x)) == (sorted([*range(12)] * 2),) * 2
    mask[1, 8:] = 0
    assert positions(model, dict(input_ids=x, attention_mask=mask))[0] == sorted([*range(12), *range(8)])
    with critbeta.hf.rescale(model, "qwen-logn:train=4"), torch.no_grad():
        found = model(input_ids=x).last_hidden_state
    assert (found - model(input_ids=x).last_hidden_state).abs().max() > 1e-3


@pytest.mark.parametrize("low", [-torch.inf, torch.finfo(torch.float32).min, -1e4])
def test_a_mask_says_whether_rows_see_later_keys(low):
    causal = torch.where(torch.ones(6, 6).tril().bool(), 0.0, low)[None, None]
    assert Visible(call("eager", 6, 6, causal)).causal
    whole = torch.zeros(1, 1, 1, 6)
    whole[..., 4:] = low
    visible = Visible(call("eager", 6, 6, whole))
    assert not visible.causal and visible.positions.tolist() == [[0, 1, 2, 3, 3, 3]]
    assert visible.real.tolist() == [[True] * 4 + [False] * 2]
    square = whole.expand(1, 1, 6, 6)
    assert not Visible(call("eager", 6, 6, square)).causal
    # One row of a cache sees the keys before it.
    step = Visible(call("eager", 1, 6, whole))
    assert step.causal and step.positions.tolist() == [[3]]


@pytest.mark.parametrize("window", [None, 2])
def test_padding_that_only_a_mask_shows_counts_in_no_position(window):
    see = torch.ones(7, 7).tril().bool()
    if window is not None:
        see &= torch.ones(7, 7).triu(1 - window).bool()
    mask = see.expand(2, 1, 7, 7).clone()
    mask[1, ..., :3] = False
    visible = Visible(call("sdpa", 7, 7, mask, batch=2))
    assert visible.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 1, 2, 3]]
    assert visible.counts()[1, 0].tolist()[:3] == [0, 0, 0]


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_beams_in_decoding_have_each_row_once_and_right(kind, beams, tmp_path):
    model, x, seen = tiny(kind, "eager"), tokens(1, 10), set()

    def watch(module, args, kwargs, out):
        weights = out[1]
        for beam, head, row in np.ndindex(weights.shape[:3]):
            of = weights[beam, head, row].double()
            n = int((of > 0).sum())
            seen.add(
                (
                    module.layer_idx,
                    head,
                    n,
                    round(float(-torch.xlogy(of, of).sum()), 4),
                    int((of > 0).nonzero()[-1]),
                )
            )

    hooks = [layer.self_attn.register_forward_hook(watch, with_kwargs=True) for layer in model.model.layers]
    with critbeta.hf.record(model, rows=1000) as rec, torch.no_grad():
        made = model.generate(x, num_beams=beams, max_new_tokens=8, do_sample=False, eos_token_id=None)
    for hook in hooks:
        hook.remove()
    assert made.shape[1] == 18
    rows = rec.rows
    layers = {name: number for number, name in enumerate(dict.fromkeys(rows.layer.tolist()))}
    found = [
        (layers[layer], head, n, round(entropy, 4))
        for layer, head, n, entropy in zip(
            rows.layer.tolist(), rows.head.tolist(), rows.n.tolist(), rows.entropy.tolist()
        )
    ]
    near = [(layer, head, n, value) for layer, head, n, value, _ in seen]
    for layer, head, n, value in found:
        assert any((a, b, c) == (layer, head, n) and abs(d - value) < 5e-4 for a, b, c, d in near)
    for layer, head, n, value in near:
        assert any((a, b, c) == (layer, head, n) and abs(d - value) < 5e-4 for a, b, c, d in found)
    # The prompt counts once, and no step more often than there are beams.
    counts = np.bincount(rows.position, minlength=17) / (2 * 6)
    assert (counts[:10] == 1).all() and (counts[10:17] <= beams).all() and (counts[10:17] >= 1).all()
