"""Continuous batching of transformers, packed requests, and what background threads must not keep to themselves."""

import threading

import critbeta.hf
import numpy as np
import pytest
import torch
import transformers
from critbeta.hf._visible import Visible
from hf_models import tiny, tokens
from test_hf_visible import call, check

PROMPTS = [tokens(1, n, seed=at)[0].tolist() for at, n in enumerate((20, 10, 9, 11, 10))]
# By default its cache takes most of the machine's memory.
SMALL = dict(
    continuous_batching_config=transformers.ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=128)
)
SETTINGS = transformers.GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=96, pad_token_id=0)


def one_by_one(model):
    made = [
        model.generate(torch.tensor([x]), generation_config=SETTINGS)[0, len(x) :].tolist() for x in PROMPTS
    ]
    return sorted(made)


def batched(model):
    made = model.generate_batch(PROMPTS, generation_config=SETTINGS, **SMALL)
    return sorted(of.generated_tokens for of in made.values())


def table(rec):
    rows = rec.rows
    order = np.lexsort((rows.max, rows.n, rows.position, rows.head, rows.layer))
    return [getattr(rows, name)[order] for name in ("layer", "head", "position", "n", "entropy", "max")]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("law", ["ssmax:s=0.43", "qwen-logn:train=4", "critical:resolve=1.2,cap=8"])
def test_continuous_batching_is_rescaled_as_generate_is(kind, attention, law):
    model = tiny(kind, attention)
    plain = one_by_one(model)
    with critbeta.hf.rescale(model, law):
        expected, found = one_by_one(model), batched(model)
    assert found == expected != plain


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_continuous_batching_is_recorded_as_generate_is(attention, tmp_path):
    model = tiny("llama", attention)
    with critbeta.hf.record(model, rows=100) as expected:
        one_by_one(model)
    with critbeta.hf.record(model, rows=100) as found:
        batched(model)
    for a, b in zip(table(expected), table(found)):
        if a.dtype.kind == "f":
            np.testing.assert_allclose(b, a, atol=2e-3)
        else:
            assert np.array_equal(a, b)
    # Each request is one text, through its prompt and its steps, also where two stand at one position.
    assert len(found.save(tmp_path / "found.safetensors")) == len(PROMPTS)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("law", ["qwen-logn:train=4", "ssmax:s=0.43"])
def test_positions_of_any_integer_dtype(dtype, law):
    # A window's model shows its attention the position_ids that it was given.
    model, ids = tiny("llama"), torch.cat([torch.arange(7), torch.arange(13)])[None]
    found = []
    for kind in (torch.int64, dtype):
        given = dict(input_ids=tokens(1, 20), position_ids=ids.to(kind))
        with critbeta.hf.rescale(model, law), critbeta.hf.record(model, rows=100) as rec, torch.no_grad():
            found.append((model(**given).logits, rec))
    assert torch.equal(found[0][0], found[1][0])
    assert sorted(found[1][1].rows.position.tolist()) == sorted(2 * 6 * ids[0].tolist())


PAGED = dict(read_index=[], write_index=[])


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(PAGED, cache=object()), "it puts the keys into the paged cache itself"),
        (dict(PAGED, block_table=torch.zeros(1, 1)), "it finds keys by a table of blocks"),
        (dict(cu_seq_lens_k=torch.tensor([0, 5, 40])), "its requests have 40 keys, and 8 are given"),
    ],
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash_attention_2", "paged|sdpa"])
def test_keys_that_are_not_all_there_are_refused(kwargs, message, implementation):
    with pytest.raises(ValueError, match=f"{message}.*: use generate"):
        Visible(call(implementation, 8, 8, **kwargs))


def test_packed_requests_under_flash_attention_have_their_own_keys_and_positions():
    # Three requests of 3, 1 and 2 new tokens, with 3, 5 and 4 keys; the last two rows are padding.
    queries, keys = (
        torch.tensor([0, 3, 4, 6], dtype=torch.int32),
        torch.tensor([0, 3, 8, 12], dtype=torch.int32),
    )
    ids = torch.tensor([[0, 1, 2, 4, 2, 3, 0, 0]], dtype=torch.int32)
    given = dict(cu_seq_lens_q=queries, cu_seq_lens_k=keys, position_ids=ids)
    visible = Visible(call("flash_attention_2", 8, 14, **given))
    starts, ends = [0, 0, 0, 3, 8, 8], [0, 1, 2, 7, 10, 11]
    sees = lambda _, row, key: row < 6 and starts[row] <= key <= ends[row]  # noqa: E731
    check(visible, sees, ids.tolist())
    assert visible.requests.tolist() == [0, 0, 0, 1, 2, 2, -1, -1]
    window = Visible(call("flash_attention_2", 8, 14, sliding_window=2, **given))
    check(
        window,
        lambda _, row, key: row < 6 and max(starts[row], ends[row] - 1) <= key <= ends[row],
        ids.tolist(),
    )


def failing(model):
    """Makes the recorder or the rescaling fail in attention: with learned sinks."""
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, "s_aux": 1}), with_kwargs=True
        )
    return model


@pytest.mark.parametrize("use", ["record", "rescale"])
def test_an_error_in_the_thread_of_continuous_batching_reaches_the_user(use, caplog):
    model = failing(tiny("llama"))
    opened = critbeta.hf.record(model) if use == "record" else critbeta.hf.rescale(model, "ssmax:s=0.43")
    with pytest.raises(
        RuntimeError, match="in a thread .* ValueError: model.layers.0.self_attn has learned sinks"
    ):
        with opened:
            model.generate_batch(PROMPTS, generation_config=SETTINGS, **SMALL)
    assert any(of.name == "critbeta.hf" and "learned sinks" in of.message for of in caplog.records)


@pytest.mark.parametrize("use", ["record", "rescale"])
def test_an_error_in_a_thread_that_hides_it_reaches_the_user(use):
    model = failing(tiny("llama"))
    opened = critbeta.hf.record(model) if use == "record" else critbeta.hf.rescale(model, "ssmax:s=0.43")

    def work():
        try:
            model(tokens(1, 9))
        except ValueError:
            pass

    with pytest.raises(RuntimeError, match="learned sinks"), opened:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    with pytest.raises(KeyError, match="the user's own"), critbeta.hf.record(model):
        raise KeyError("the user's own")
