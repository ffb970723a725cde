"""Recording a model that others build: attn_implementation="critbeta"."""

import critbeta.hf
import pytest
import torch
from hf_models import tiny, tokens
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
