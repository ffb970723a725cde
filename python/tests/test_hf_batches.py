"""Many texts of a batch: one call of the core a layer, and the rows of every text as if it were alone."""

import multiprocessing
import os

import critbeta
import critbeta.hf
import numpy as np
import pytest
import torch
from critbeta.hf._record import Recorder
from hf_models import tiny, tokens
from safetensors.torch import load_file

KINDS = ["llama", "mistral", "gemma2", "gpt_neox", "bert"]
STEPS = 4


def ragged(texts, length, side="left"):
    pad = torch.arange(texts)[:, None] * 3 % (length // 2)
    at = torch.arange(length)
    mask = at >= pad if side == "left" else at < length - pad
    ids = tokens(texts, length)
    # No two texts begin alike, so no row is bit-equal to another one.
    ids.scatter_(1, mask.long().argmax(1, keepdim=True), torch.arange(3, 3 + texts)[:, None])
    return {"input_ids": ids, "attention_mask": mask.long()}


def run(model, texts, length, side="left"):
    given = ragged(texts, length, side)
    if model.config.model_type == "bert" or side == "right":
        return model(**given)
    settings = dict(do_sample=False, max_new_tokens=STEPS, min_new_tokens=STEPS)
    return model.generate(**given, **settings)


class Counting:
    """A recording that counts its calls by layer."""

    def __init__(self, recording):
        self._recording, self.calls = recording, {}

    def add(self, layer, *given):
        self.calls[layer] = self.calls.get(layer, 0) + 1
        self._recording.add(layer, *given)

    def __getattr__(self, name):
        return getattr(self._recording, name)


@pytest.mark.parametrize("texts", [1, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_calls_the_core_once_whatever_the_number_of_texts(kind, texts):
    model = tiny(kind)
    with critbeta.hf.record(model) as rec, torch.no_grad():
        rec._recording = counting = Counting(rec._recording)
        run(model, texts, 24)
    passes = 1 if kind == "bert" else STEPS
    assert len(counting.calls) == 2 and set(counting.calls.values()) == {passes}
    assert len(rec.rows) > texts


def test_texts_whose_scores_are_many_are_split_and_in_order(monkeypatch):
    """Scores of a layer take little memory at a time. The calls split, and the records stay the same."""
    found = {}
    for kind in ("gemma2", "bert", "mistral"):
        for most in (64 << 20, 20_000, 1):
            monkeypatch.setattr("critbeta.hf._texts._TILE_BYTES", most)
            with critbeta.hf.record(tiny(kind)) as rec, torch.no_grad():
                rec._recording = counting = Counting(rec._recording)
                run(rec.model, 8, 24)
            found[most] = rec.rows, sum(counting.calls.values())
        (whole, few), (some, more), (single, most_calls) = found.values()
        assert few < more < most_calls
        for other in (some, single):
            for name in ("layer", "head", "row", "position", "n", "ties", "argmax"):
                assert np.array_equal(getattr(whole, name), getattr(other, name)), name
            assert np.allclose(whole.max, other.max, rtol=1e-5)
            assert np.allclose(whole.critical_beta, other.critical_beta, rtol=1e-3, equal_nan=True)


def calls_of(model, monkeypatch, *given):
    """Records `model`, and returns its rows with the (layer, query, key) of every call of attention."""
    calls, observe = [], Recorder._observe

    def observed(self, call):
        calls.append((call.layer, call.query.clone(), call.key.clone(), call.scaling))
        observe(self, call)

    monkeypatch.setattr(Recorder, "_observe", observed)
    with critbeta.hf.record(model, rows=100) as rec, torch.no_grad():
        run(model, *given)
    return rec.rows, calls


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("kind, side", [("llama", "left"), ("gpt_neox", "left"), ("llama", "right")])
def test_rows_of_a_batch_are_those_of_its_texts_one_by_one(kind, side, dtype, monkeypatch):
    texts, length = 7, 20
    model = tiny(kind).to(getattr(torch, dtype))
    rows, calls = calls_of(model, monkeypatch, texts, length, side)
    given = ragged(texts, length, side)["attention_mask"]
    expected = {name: [] for name in rows.names}
    for layer, query, key, scale in calls:
        mask = torch.cat([given, torch.ones(texts, key.shape[2] - length, dtype=torch.long)], 1)
        columns = torch.arange(key.shape[2])[-query.shape[2] :]
        for text in range(texts):
            first = int(mask[text].argmax())
            own = columns[mask[text, columns] == 1]
            q, k = query[text][:, own - columns[0]], key[text][:, first : int(own[-1]) + 1]
            alone = critbeta.diagnose(q=q, k=k, positions=own - first, scale=scale, layer=layer).rows
            for name in expected:
                expected[name].append(np.asarray(getattr(alone, name)).ravel())
    assert sum(map(len, expected["n"])) == len(rows.n) > 7 * 10 * 12
    for name, of_texts in expected.items():
        found = np.asarray(getattr(rows, name))
        assert np.array_equal(found, np.concatenate(of_texts), equal_nan=found.dtype.kind == "f"), name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "bert"])
def test_scores_of_a_batch_are_those_of_its_texts_one_by_one(kind, side, monkeypatch):
    texts, length = 7, 20
    model = tiny(kind)
    rows, calls = calls_of(model, monkeypatch, texts, length, side)
    given = ragged(texts, length, side)["attention_mask"].bool()
    config, expected = model.config, []
    for number, (layer, query, key, scale) in enumerate(calls):
        if query.shape[2] < length:
            break
        windowed = kind == "mistral" or kind == "gemma2" and number % 2 == 0
        at = torch.arange(length)
        seen = torch.ones(length, length, dtype=torch.bool) if kind == "bert" else at <= at[:, None]
        seen = seen & (at > at[:, None] - config.sliding_window) if windowed else seen
        for text in range(texts):
            own = at[given[text]]
            k = key[text].repeat_interleave(query.shape[1] // key.shape[1], 0)
            scores = query[text][:, own] @ k.transpose(1, 2) * scale
            if kind == "gemma2":
                scores = torch.tanh(scores / config.attn_logit_softcapping) * config.attn_logit_softcapping
            scores = scores.masked_fill(~(seen & given[text])[own], -torch.inf)
            alone = critbeta.stats(scores)
            position = np.broadcast_to((own - own[0]).numpy(), alone.n.shape)
            columns = position, alone.n, alone.ties, alone.max, alone.critical_beta, alone.entropy
            expected.append(np.stack([column.ravel() for column in columns]))
    expected = np.concatenate(expected, 1)
    names = ("position", "n", "ties", "max", "critical_beta", "entropy")
    found = np.stack([getattr(rows, name)[: expected.shape[1]] for name in names])
    assert np.array_equal(found[:3], expected[:3])
    assert np.allclose(found[3:], expected[3:], rtol=1e-3, atol=1e-6)


def test_saved_files_hold_the_rows_of_their_texts(tmp_path):
    with critbeta.hf.record(tiny("mistral"), rows=100) as rec, torch.no_grad():
        run(rec.model, 5, 12)
    files, kept = rec.save(tmp_path / "kept.safetensors"), []
    for tensors in map(load_file, files):
        for name in tensors:
            if name.endswith(".q"):
                of = {part: tensors[f"{name[:-2]}.{part}"] for part in ("q", "k", "positions")}
                kept.append(critbeta.diagnose(**of).rows.critical_beta.ravel())
            elif f"{name}.positions" in tensors:
                kept.append(critbeta.stats(tensors[name]).critical_beta.ravel())
    assert len(files) > 5 and np.array_equal(np.sort(np.concatenate(kept)), np.sort(rec.rows.critical_beta))


def test_calls_that_wait_are_recorded_whenever_somebody_looks():
    """Small calls are measured later, together, and while the model goes on. Nobody can tell."""
    model, x = tiny("llama"), tokens(4, 20)
    counts, looked = [], critbeta.hf.record(model)
    with looked, torch.no_grad():
        cache = None
        for step in range(20):
            cache = model(x[:, step : step + 1], cache=cache, use_cache=True).past_key_values
            counts.append(looked.recorded)
    with critbeta.hf.record(model) as rec, torch.no_grad():
        cache = None
        for step in range(20):
            cache = model(x[:, step : step + 1], cache=cache, use_cache=True).past_key_values
    assert counts == [(step + 1) * 4 * 2 * 6 for step in range(20)]
    for name in rec.rows.names:
        assert np.array_equal(getattr(rec.rows, name), getattr(looked.rows, name)), name


def test_a_wide_batch_is_measured_in_the_background_in_order():
    """The waiting calls of many texts are handed over several times."""
    model, x = tiny("llama", head_dim=64), tokens(64, 60)
    x[:, 0] = torch.arange(64) + 3
    with critbeta.hf.record(model) as rec, torch.no_grad():
        cache = None
        for step in range(60):
            cache = model(x[:, step : step + 1], cache=cache, use_cache=True).past_key_values
    rows = rec.rows
    assert len(rows.n) == 60 * 64 * 2 * 6
    assert np.array_equal(rows.position, np.repeat(np.arange(60), 64 * 2 * 6))
    assert np.array_equal(rows.head, np.tile(np.arange(6), 60 * 64 * 2))
    layers = np.repeat([f"model.layers.{layer}.self_attn" for layer in (0, 1)], 64 * 6)
    assert np.array_equal(rows.layer, np.tile(layers, 60))


def forked(found, recorder):
    try:
        found.put(recorder.recorded)
    except RuntimeError as error:
        found.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_does_not_wait_for_the_threads_of_its_parent():
    model = tiny("llama")
    with critbeta.hf.record(model) as rec, torch.no_grad():
        model(tokens(4, 20))
        context = multiprocessing.get_context("fork")
        found = context.Queue()
        child = context.Process(target=forked, args=(found, rec))
        child.start()
        answer = found.get(timeout=60)
        child.join(60)
    assert child.exitcode == 0
    assert answer == rec.recorded or "forked" in str(answer)
