"""critbeta.hf.record against scores computed by hand, and its files against the reader of the command."""

import critbeta
import critbeta.hf
import numpy as np
import pytest
import torch
from hf_models import by_hand, tiny, tokens
from reference import partition, reference
from transformers import DynamicCache, StaticCache

KINDS = ["llama", "qwen2", "mistral", "gemma2", "gpt_neox", "bert"]


def run(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, **kwargs)[0]


def recorded(model, *args, rows=1000, **kwargs):
    with critbeta.hf.record(model, rows=rows) as rec:
        run(model, *args, **kwargs)
    return rec


def places(rows, layers):
    """Returns the index of every row by (layer, text, head, position). Texts of a batch follow each other."""
    found, seen = {}, {}
    for i, (layer, head, position) in enumerate(zip(rows.layer, rows.head.tolist(), rows.position.tolist())):
        key = layers.index(layer), head, position
        text = seen.get(key, 0)
        seen[key] = text + 1
        found[key[0], text, head, position] = i
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_scores_computed_by_hand(kind):
    x, seen = tokens(2, 40), []
    run(by_hand(tiny(kind), seen=seen), x)
    rows = recorded(tiny(kind), x).rows
    layers = list(dict.fromkeys(rows.layer))
    index = places(rows, layers)
    assert len(index) == len(seen) == len(rows) == 2 * 6 * 2 * 40
    for layer, text, head, position, scores in seen:
        # A row of an encoder sees all keys, so the position by hand is the last one.
        at = index.pop((layer, text, head, position), None)
        if kind == "bert":
            continue
        expected = reference(scores.astype(np.float32))
        assert rows.n[at] == expected.n and rows.ties[at] == expected.ties == 1
        assert rows.argmax[at] == expected.argmax + (position + 1 - len(scores))
        assert rows.max[at] == pytest.approx(expected.max, abs=1e-4)
        # Gaps have the float32 error of scores of order 10.
        gap = expected.gaps[1] if len(expected.gaps) > 1 else np.inf
        assert rows.critical_beta[at] == pytest.approx(expected.critical_beta, rel=1e-4 + 2e-5 / gap)
        z = partition(expected.gaps, 1.0)
        assert rows.log_partition[at] == pytest.approx(np.log(z), abs=1e-4)
    if kind == "bert":
        assert (rows.n == 40).all() and sorted(set(rows.position.tolist())) == list(range(40))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_output_has_the_same_bits_and_nothing_stays(kind, attention):
    if (kind, attention) == ("gemma2", "sdpa"):
        pytest.skip("transformers has no sdpa for softcaps")
    model, x = tiny(kind, attention), tokens(2, 40)
    plain = run(model, x)
    with critbeta.hf.record(model):
        assert torch.equal(run(model, x), plain)
    with pytest.raises(ZeroDivisionError), critbeta.hf.record(model):
        raise ZeroDivisionError
    assert torch.equal(run(model, x), plain)
    assert not any("_critbeta" in vars(module) or module._forward_pre_hooks for module in model.modules())


def same(found, expected, where=slice(None)):
    for name in expected.names:
        if name not in ("layer", "row"):
            one, other = getattr(found, name)[where].ravel(), getattr(expected, name).ravel()
            assert np.array_equal(one, other, equal_nan=True), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_files_hold_the_recorded_rows(tmp_path, kind, dtype):
    """The saved files give the same bits: queries and keys by the same products, scores unchanged."""
    from safetensors import safe_open

    model = tiny(kind).to(dtype)
    rec = recorded(model, tokens(2, 60), rows=24)
    rows, files = rec.rows, rec.save(tmp_path / "qk.safetensors")
    count = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
            metadata = opened.metadata()
        for name in tensors:
            layer, positions = name.removesuffix(".q"), tensors.get(f"{name.removesuffix('.q')}.positions")
            if name.endswith((".k", ".positions")):
                continue
            if name.endswith(".q"):
                scale = float(metadata["scale"])
                given = dict(q=tensors[name], k=tensors[f"{layer}.k"], scale=scale)
            else:
                given = dict(scores=tensors[name])
            of = critbeta.diagnose(**given, positions=positions, layer=layer).rows
            here = [i for i in range(len(rows)) if rows.layer[i] == layer]
            # The texts of a batch are recorded one after the other.
            of_text = len(here) // 2 * int(metadata["text"])
            same(rows, of, here[of_text : of_text + len(of)])
            count += len(of)
    assert count == len(rows)
    page = tmp_path / "files.html"
    critbeta.report(files, page)
    rec.report(tmp_path / "report.html")
    assert page.stat().st_size > 20_000 and (tmp_path / "report.html").stat().st_size > 20_000
    whole = rec.summary()
    assert [head["rows"] for head in whole["heads"]] == [len(rows) // 12] * 12


def test_left_padding_packing_and_caches_do_not_change_what_is_recorded():
    model, x = tiny("llama"), tokens(1, 24)
    alone = recorded(model, x).rows
    pad = torch.zeros(1, 5, dtype=torch.long)
    mask = torch.cat([pad, torch.ones_like(x)], 1)
    padded = recorded(model, torch.cat([pad, x], 1), attention_mask=mask).rows
    other = tokens(1, 9, seed=5)
    ids = torch.cat([torch.arange(9), torch.arange(24)])[None]
    packed = recorded(model, torch.cat([other, x], 1), position_ids=ids, use_cache=False).rows
    assert len(packed) == len(alone) + 2 * 6 * 9
    cached = []
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=32)):
        with critbeta.hf.record(model, rows=1000) as rec:
            run(model, x[:, :10], cache=cache, use_cache=True)
            run(model, x[:, 10:13], cache=cache, use_cache=True)
            for at in range(13, 24):
                run(model, x[:, at : at + 1], cache=cache, use_cache=True)
        cached.append(rec)
    layers = list(dict.fromkeys(alone.layer))
    expected = places(alone, layers)
    for rows, text in [(padded, 0), (packed, None), *((rec.rows, 0) for rec in cached)]:
        found = places(rows, layers)
        for (layer, _, head, position), at in expected.items():
            which = (1 if position < 9 else 0) if text is None else text
            here = found[layer, which, head, position]
            for name in ("n", "position", "argmax", "ties"):
                assert getattr(rows, name)[here] == getattr(alone, name)[at], name
            relative = 1e-4 + 4e-5 / max(alone.contact_gap[at], 1e-9)
            assert rows.critical_beta[here] == pytest.approx(alone.critical_beta[at], rel=relative)
            assert rows.entropy[here] == pytest.approx(alone.entropy[at], abs=1e-4)


def test_a_text_that_grew_in_a_cache_is_saved_whole(tmp_path):
    model, x, cache = tiny("llama"), tokens(1, 24), DynamicCache()
    with critbeta.hf.record(model, rows=1000) as rec:
        run(model, x[:, :20], cache=cache, use_cache=True)
        for at in range(20, 24):
            run(model, x[:, at : at + 1], cache=cache, use_cache=True)
    (file,) = rec.save(tmp_path / "qk.safetensors")
    from safetensors.torch import load_file

    tensors, name = load_file(file), "model.layers.1.self_attn"
    assert tensors[f"{name}.q"].shape == (6, 24, 8) and tensors[f"{name}.k"].shape == (2, 24, 8)
    assert tensors[f"{name}.positions"].tolist() == list(range(24))
    q, k, positions = (tensors[f"{name}.{part}"] for part in ("q", "k", "positions"))
    found = critbeta.diagnose(q=q, k=k, positions=positions, scale=8**-0.5).rows
    here = [i for i in range(len(rec.rows)) if rec.rows.layer[i] == name]
    assert sorted(found.critical_beta.ravel()) == sorted(rec.rows.critical_beta[here])


def test_rows_are_sampled_over_all_lengths_and_at_the_end():
    rec = recorded(tiny("llama"), tokens(1, 250), rows=40)
    n = np.unique(rec.rows.n)
    assert len(rec.rows) <= 2 * 6 * 40 and n.min() == 8 and n[-10:].tolist() == list(range(241, 251))
    assert (np.diff(np.log(n[:-10])) < 0.25).all()
    with critbeta.hf.record(tiny("llama"), rows=4) as rec:
        found = rec.model.generate(tokens(1, 4), max_new_tokens=20, min_new_tokens=20, do_sample=False)
    assert found.shape == (1, 24)
    # Of steps 4..22 it takes the first four, then every second of eight, then every fourth.
    assert np.unique(rec.rows.position).tolist() == [*range(4), 4, 5, 6, 7, 8, 10, 12, 14, 16, 20]


def test_memory_is_bounded_with_a_warning(tmp_path):
    model, x = tiny("llama"), tokens(1, 60)
    with critbeta.hf.record(model, max_bytes=0) as none:
        run(model, x)
    with pytest.raises(RuntimeError, match="none of the 720 rows is kept, max_bytes is 0"):
        none.save(tmp_path / "qk.safetensors")
    none.report(tmp_path / "report.html")
    assert (tmp_path / "report.html").exists()
    with critbeta.hf.record(model, max_bytes=16_000) as some:
        run(model, x)
    with pytest.warns(UserWarning, match="holds 360 of the 720 recorded rows: max_bytes=16000"):
        some.save(tmp_path / "qk.safetensors")
    with pytest.raises(ValueError, match="ends in .safetensors"):
        recorded(model, x).save(tmp_path / "qk.npz")
    with pytest.raises(OSError):
        recorded(model, x).save(tmp_path / "none" / "qk.safetensors")


def test_a_table_prints_and_becomes_pandas():
    rec = recorded(tiny("llama"), tokens(1, 100))
    table, summary = rec.table(), rec.summary()
    assert len(table) == 12 and str(table).splitlines()[0].split()[:3] == ["layer", "head", "rows"]
    frame = table.to_pandas()
    assert frame["critical_beta"].tolist() == [head["critical_beta"]["q50"] for head in summary["heads"]]
    assert frame["verdict"][0] == summary["heads"][0]["length_law"]["verdict"]
    # The table leaves out rows of one key.
    of_head = (rec.rows.head == 2) & (np.asarray(rec.rows.layer) == frame["layer"][0]) & (rec.rows.n > 1)
    by_head = rec.rows.critical_beta[of_head]
    assert frame["critical_beta"][2] == np.median(by_head)


def test_recorders_and_rescalings_work_together():
    """Scores are those before the rescaling; in the first layer they are those of the plain model."""
    model, x = tiny("llama"), tokens(1, 40)
    plain = recorded(model, x).rows
    with critbeta.hf.rescale(model, "ssmax:s=0.6"):
        rescaled = run(model, x)
        with critbeta.hf.record(model, rows=1000) as outer, critbeta.hf.record(model, rows=1000) as inner:
            assert torch.equal(run(model, x), rescaled)
    first = slice(0, len(plain) // 2)
    assert np.array_equal(outer.rows.critical_beta[first], plain.critical_beta[first])
    assert not np.array_equal(outer.rows.critical_beta, plain.critical_beta)
    assert np.array_equal(outer.rows.critical_beta, inner.rows.critical_beta)
    with critbeta.hf.record(model, rows=1000) as rec, critbeta.hf.rescale(model, "ssmax:s=0.6"):
        run(model, x)
    assert np.array_equal(rec.rows.critical_beta, outer.rows.critical_beta)


def test_wrong_arguments_are_refused():
    model = tiny("llama")
    with pytest.raises(ValueError, match="rows is 0: expected at least 1"):
        critbeta.hf.record(model, rows=0)
    with pytest.raises(ValueError, match="resolve is -1"):
        critbeta.hf.record(model, resolve=-1)
    with pytest.raises(ValueError, match="max_bytes is -1"):
        critbeta.hf.record(model, max_bytes=-1)
    with pytest.raises(ValueError, match="MultiheadAttention computes attention itself"):
        critbeta.hf.record(torch.nn.TransformerEncoderLayer(8, 2))
    with pytest.raises(RuntimeError, match="nothing is recorded: run the model"):
        critbeta.hf.record(model).rows
    rec = critbeta.hf.record(model)
    with rec, pytest.raises(RuntimeError, match="recording already"):
        rec.__enter__()


def test_attention_that_bypasses_the_interface_is_reported():
    model, x = tiny("llama"), tokens(1, 10)
    layers = model.model.layers
    plain = layers[1].self_attn.forward
    layers[1].self_attn.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    with pytest.warns(UserWarning, match=r"not recorded.*model\.layers\.1\.self_attn"):
        recorded(model, x)
    layers[0].self_attn.forward = layers[1].self_attn.forward
    with pytest.raises(RuntimeError, match="none of its 2 attention layers called"):
        recorded(model, x)
    layers[1].self_attn.forward = plain


def test_a_compiled_model_is_recorded():
    model, x = tiny("llama"), tokens(1, 16)
    compiled = torch.compile(model, backend="eager")
    run(compiled, x)
    assert np.array_equal(recorded(compiled, x).rows.critical_beta, recorded(model, x).rows.critical_beta)


def test_checkpointed_layers_are_recorded_once():
    model, x = tiny("llama").train(), tokens(1, 20)
    for reentrant in (True, False):
        model.activation_checkpointing_enable(dict(use_reentrant=reentrant))
        with critbeta.hf.record(model) as rec:
            model(x, labels=x, use_cache=False).loss.backward()
        assert len(rec.rows) == 2 * 6 * 20
