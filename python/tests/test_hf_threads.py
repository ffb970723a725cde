"""One model in several threads: each has the padding, positions and texts of its own forward passes."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import critbeta.hf
import numpy as np
import pytest
import torch
from hf_models import tiny, tokens

THREADS, PASSES = 4, 6


def batches(thread):
    """Yields left-padded texts and their masks, with a different padding in each thread."""
    for number in range(PASSES):
        padded = 3 * thread + number
        mask = torch.ones(2, 30, dtype=torch.long)
        mask[0, :padded] = 0
        yield tokens(2, 30, seed=PASSES * thread + number), mask


def run(model, thread, barrier):
    """Runs forward passes that begin in all threads at once."""
    found = []
    for x, mask in batches(thread):
        barrier.wait(timeout=60)
        with torch.no_grad():
            found.append(model(x, attention_mask=mask)[0])
    return found


def together(model):
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, [model] * THREADS, range(THREADS), [Barrier(THREADS)] * THREADS))


@pytest.mark.parametrize("rule", ["qwen-logn:train=8", "critical:resolve=0.69,cap=8"])
def test_a_rescaled_model_has_the_same_logits_in_every_thread(rule):
    model = tiny("llama")
    with critbeta.hf.rescale(model, rule):
        found = together(model)
        for thread in range(THREADS):
            for one, other in zip(found[thread], run(model, thread, Barrier(1))):
                assert torch.equal(one, other)


def test_a_recorder_keeps_the_texts_of_threads_apart(tmp_path):
    model = tiny("llama")
    with critbeta.hf.record(model, rows=1000) as rec:
        together(model)
    lengths = sorted(int(n) for thread in range(THREADS) for _, mask in batches(thread) for n in mask.sum(-1))
    # Two texts may begin with the same token: those rows count once, if they are bit-equal.
    of_threads = [batch for thread in range(THREADS) for batch in batches(thread)]
    texts = [text[seen > 0].tolist() for x, mask in of_threads for text, seen in zip(x, mask)]
    different = {tuple(text[:end]) for text in texts for end in range(1, len(text) + 1)}
    assert 2 * 6 * len(different) <= len(rec.rows) <= 2 * 6 * sum(lengths)
    assert (rec.rows.n == rec.rows.position + 1).all()
    files = rec.save(tmp_path / "qk.safetensors")
    assert len(files) == len(lengths)
    from safetensors.torch import load_file

    saved = [load_file(file) for file in files]
    assert sorted(file["model.layers.0.self_attn.k"].shape[1] for file in saved) == lengths
    # The saved files hold the measured rows.
    layer, betas = "model.layers.1.self_attn", []
    for file in saved:
        given = {part: file[f"{layer}.{part}"] for part in ("q", "k", "positions")}
        betas.append(critbeta.diagnose(**given).rows.critical_beta.ravel())
    recorded = rec.rows.critical_beta[np.asarray(rec.rows.layer) == layer]
    assert np.array_equal(np.sort(np.concatenate(betas)), np.sort(recorded), equal_nan=True)
