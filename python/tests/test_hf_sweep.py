"""The sweep over architectures (python/benches/hf_sweep.py), for one of every kind of mask, and that it sees
faults."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benches"))
import hf_sweep  # noqa: E402
import hf_tiny  # noqa: E402
from critbeta.hf import _scores, _visible  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = {
    "llama/LlamaConfig": "causal",
    "mistral/MistralConfig": "a window",
    "gemma2/Gemma2Config": "a softcap, and a window in every second layer",
    "gemma3/Gemma3Config": "masks that an outer model makes",
    "llama4/Llama4TextConfig": "chunks of attention, and a cache that forgets",
    "bert/BertConfig": "an encoder",
    "layoutlm/LayoutLMConfig": "an encoder that does not say so",
    "t5/T5Config": "a position bias, and cross-attention",
    "opt/OPTConfig": "padding at position -1",
    "diffllama/DiffLlamaConfig": "two calls a layer",
    "albert/AlbertConfig": "a module that runs twice",
    "granite_speech5/GraniteSpeech5EncoderConfig": "blocks, and a bias with a finite mask",
    "qwen2_vl/Qwen2VLVisionConfig": "packed images",
    "inkling/InklingConfig": "relative positions in a window with a cache",
}


def swept(name):
    (kinds,) = hf_tiny.architectures(f"^{name}$").values()
    return hf_sweep.sweep(kinds)


@pytest.mark.parametrize("name", KINDS)
def test_records_and_rescalings_agree_with_the_weights_of_eager_attention(name):
    found = swept(name)
    checks = {f"{of}, {law}": text for of, check in found["checks"].items() for law, text in check.items()}
    # A model may not take an input, or not have the implementation.
    assert [
        (of, text) for of, text in checks.items() if text != "agrees" and not of.endswith(", model")
    ] == []
    assert {"plain, record", "plain, fixed:1", "plain, fixed:2", "plain, ssmax:s=0.5"} <= set(checks)


def test_learned_sinks_are_refused():
    found = swept("gpt_oss/GptOssConfig")
    assert "learned sinks" in found["checks"]["plain"]["record"]


def test_attention_without_the_interface_is_refused():
    assert "BloomAttention computes attention itself" in swept("bloom/BloomConfig")["refused"]


def test_the_sweep_sees_masks_that_are_not_read(monkeypatch):
    monkeypatch.setattr(_visible, "_HIDDEN", -1e30)
    monkeypatch.setattr(_scores, "_NO_WEIGHT", 1e30)
    checks = swept("llama/LlamaConfig")["checks"]
    assert checks["plain"]["record"] == "agrees"
    for low in ("-1e+09", "-1e+04"):
        assert "none of eager attention's" in checks[f"mask of {low}"]["record"]
        assert checks[f"mask of {low}"]["ssmax:s=0.5"].startswith("differs: the output")


def test_the_sweep_sees_positions_that_count_padding(monkeypatch):
    monkeypatch.setattr(_visible.Visible, "_usable", lambda *_: None)
    checks = swept("llama/LlamaConfig")["checks"]
    assert ": position: " in checks["left padding"]["record"] and checks["plain"]["record"] == "agrees"
