"""Records of a model that others build: attn_implementation="critbeta"."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import critbeta.hf
import pytest
import torch
import transformers
from hf_models import SIZES, tiny, tokens
from transformers import PreTrainedModel


def built_and_run(attention, kind="llama", seed=0):
    """Builds and runs a model like a harness, on a batch whose first text is padded on the left."""
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[0, :11] = 0
    with torch.no_grad():
        return tiny(kind, attention, seed)(tokens(2, 30), attention_mask=mask)[0]


def untouched():
    return "__call__" not in vars(PreTrainedModel)


@pytest.mark.parametrize("kind", ["llama", "mistral", "bert"])
def test_its_rows_are_those_of_a_given_model(kind):
    plain = built_and_run("sdpa", kind)
    with critbeta.hf.record() as rec, critbeta.hf.record(rows=5) as fewer:
        assert torch.equal(built_and_run("critbeta", kind), plain)
        # The block records only the first model of the name.
        assert torch.equal(built_and_run("critbeta", kind, seed=1), built_and_run("sdpa", kind, seed=1))
        assert untouched()
    model, mask = tiny(kind), torch.ones(2, 30, dtype=torch.long)
    mask[0, :11] = 0
    with critbeta.hf.record(model) as given, torch.no_grad():
        model(tokens(2, 30), attention_mask=mask)
    assert 0 < len(fewer.rows) < len(rec.rows)
    for name in ("layer", "head", "position", "n", "critical_beta", "max"):
        assert (getattr(rec.rows, name) == getattr(given.rows, name)).all(), name
    assert type(rec.model) is type(model) and type(model).__name__ in repr(rec)


def test_a_block_without_such_a_model_is_an_error():
    rec = critbeta.hf.record()
    message = 'no model that was loaded with attn_implementation="critbeta" ran'
    with pytest.raises(RuntimeError, match=message), rec:
        built_and_run("sdpa")
    assert untouched()
    with pytest.raises(RuntimeError, match="nothing is recorded"):
        rec.rows
    # The recorder waits again, and then keeps the model that it found.
    with rec:
        built_and_run("critbeta")
    rows = len(rec.rows)
    with rec:
        built_and_run("critbeta")
    assert len(rec.rows) == rows and untouched()


def test_exceptions_end_the_wait():
    with pytest.raises(KeyError), critbeta.hf.record():
        raise KeyError
    assert untouched()
    with critbeta.hf.record() as rec:
        rec.close()
        assert untouched()
        built_and_run("critbeta")
    assert rec.recorded == 0
    with critbeta.hf.record() as rec:
        with pytest.raises(RuntimeError, match="recording already"):
            rec.__enter__()
        built_and_run("critbeta")
    assert rec.recorded and untouched()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_model_that_generates_is_recorded_with_its_decoder():
    sizes = dict(vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2)
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32)
    config = transformers.BartConfig(**sizes, **heads, attn_implementation="critbeta")
    model = transformers.BartForConditionalGeneration(config).eval()
    x = torch.arange(4, 24)[None]
    with critbeta.hf.record() as rec:
        model.generate(x, max_new_tokens=5, min_new_tokens=5)
    with critbeta.hf.record(model) as given:
        model.generate(x, max_new_tokens=5, min_new_tokens=5)
    layers = rec.rows.layer
    assert rec.model is model and (layers == given.rows.layer).all() and len(set(layers.tolist())) == 6


def test_threads_that_begin_at_once_record_each_row_once():
    for _ in range(20):
        model, barrier = tiny("llama", "critbeta"), Barrier(4)

        def run(thread):
            barrier.wait(timeout=60)
            with torch.no_grad():
                return model(tokens(1, 9, seed=thread))[0]

        with critbeta.hf.record() as rec, ThreadPoolExecutor(4) as pool:
            list(pool.map(run, range(4)))
        assert rec.recorded == 4 * 2 * 6 * 9
        assert untouched()
        assert not any("_critbeta" in vars(part) or part._forward_pre_hooks for part in model.modules())


def test_sinks_are_refused_as_under_sdpa():
    sizes = dict(SIZES, num_local_experts=2, num_experts_per_tok=1, head_dim=8)
    config = transformers.GptOssConfig(**sizes, attn_implementation="critbeta")
    with pytest.raises(ValueError, match="has learned sinks"), torch.no_grad():
        transformers.GptOssForCausalLM(config)(tokens(1, 9))
