"""One model, run by several threads at once: each has the padding, the positions and the texts of its own forward passes."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import critbeta.hf
import numpy as np
import pytest
import torch
from hf_models import tiny, tokens

THREADS, PASSES = 4, 6


def batches(thread):
    """Left-padded, each thread by another number of tokens, and the lengths of its texts."""
    for number in range(PASSES):
        padded = 3 * thread + number
        mask = torch.ones(2, 30, dtype=torch.long)
        mask[0, :padded] = 0
        yield tokens(2, 30, seed=thread), mask


def run(model, thread, barrier):
    """Begins every forward pass when all threads do."""
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
def test_a_rescaled_model_gives_each_thread_what_it_gives_one(rule):
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
    assert len(rec.rows) == 2 * 6 * sum(lengths)
    assert (rec.rows.n == rec.rows.position + 1).all()
    files = rec.save(tmp_path / "qk.safetensors")
    assert len(files) == len(lengths)
    from safetensors.torch import load_file

    saved = [load_file(file) for file in files]
    assert sorted(file["model.layers.0.self_attn.k"].shape[1] for file in saved) == lengths
    # What is saved is what was measured.
    layer = "model.layers.1.self_attn"
    betas = [
        critbeta.diagnose(q=file[f"{layer}.q"], k=file[f"{layer}.k"], positions=file[f"{layer}.positions"]).rows.critical_beta.ravel()
        for file in saved
    ]
    recorded = rec.rows.critical_beta[np.asarray(rec.rows.layer) == layer]
    assert np.array_equal(np.sort(np.concatenate(betas)), np.sort(recorded), equal_nan=True)
