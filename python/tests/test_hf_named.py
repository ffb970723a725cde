"""Recording a model that others build: attn_implementation="critbeta"."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import critbeta.hf
import pytest
import torch
import transformers
from hf_models import SIZES, tiny, tokens
from transformers import PreTrainedModel


def built_and_run(attention, kind="llama", seed=0):
    """As a harness does: nobody outside sees the model. A batch whose first text is padded on the left."""
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[0, :11] = 0
    with torch.no_grad():
        return tiny(kind, attention, seed)(tokens(2, 30), attention_mask=mask)[0]


def untouched():
    return "__call__" not in vars(PreTrainedModel)


@pytest.mark.parametrize("kind", ["llama", "mistral", "bert"])
def test_its_rows_are_those_of_a_model_that_was_given(kind):
    plain = built_and_run("sdpa", kind)
    with critbeta.hf.record() as rec, critbeta.hf.record(rows=5) as fewer:
        assert torch.equal(built_and_run("critbeta", kind), plain)
        # One that stands within the block is not another one's.
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


def test_of_a_block_in_which_none_ran_it_says_so():
    rec = critbeta.hf.record()
    with pytest.raises(RuntimeError, match='no model that was loaded with attn_implementation="critbeta" ran'), rec:
        built_and_run("sdpa")
    assert untouched()
    with pytest.raises(RuntimeError, match="nothing is recorded"):
        rec.rows
    # It waits again, and afterwards keeps the model it met.
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
def test_of_a_model_that_generates_its_encoder_is_not_all():
    sizes = dict(vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32)
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4)
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **heads, attn_implementation="critbeta")).eval()
    x = torch.arange(4, 24)[None]
    with critbeta.hf.record() as rec:
        model.generate(x, max_new_tokens=5, min_new_tokens=5)
    with critbeta.hf.record(model) as given:
        model.generate(x, max_new_tokens=5, min_new_tokens=5)
    assert rec.model is model and (rec.rows.layer == given.rows.layer).all() and len(set(rec.rows.layer.tolist())) == 6


def test_of_threads_that_begin_at_once_each_row_is_recorded_once():
    for _ in range(20):
        model, barrier = tiny("llama", "critbeta"), Barrier(4)

        def run(_):
            barrier.wait(timeout=60)
            with torch.no_grad():
                return model(tokens(1, 9))[0]

        with critbeta.hf.record() as rec, ThreadPoolExecutor(4) as pool:
            list(pool.map(run, range(4)))
        assert rec.recorded == 4 * 2 * 6 * 9
        assert untouched() and not any("_critbeta" in vars(module) or module._forward_pre_hooks for module in model.modules())


def test_sinks_are_refused_as_under_sdpa():
    config = transformers.GptOssConfig(**{**SIZES, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}, attn_implementation="critbeta")
    with pytest.raises(ValueError, match="has learned sinks"), torch.no_grad():
        transformers.GptOssForCausalLM(config)(tokens(1, 9))
