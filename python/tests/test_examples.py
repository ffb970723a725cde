"""The parts of the examples that need neither texts nor models."""

import importlib
import shutil
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("transformers")
torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")


@pytest.mark.parametrize("each", [1, 2, 3, 5])
def test_pieces_have_no_token_in_common(each):
    study = importlib.import_module("length_laws")
    tokenizer = lambda text, verbose: {"input_ids": range(int(text))}  # noqa: E731
    least = study.SKIPPED + each * (study.END + 1)
    for length in (least, least + 1, least + 12_345):
        found = study.pieces({"text": str(length)}, tokenizer, each)
        tokens = torch.cat(list(found.values()))
        assert len(found) == each and len(tokens) == each * (study.END + 1) == len(tokens.unique())
        assert tokens.min() == study.SKIPPED and (each == 1 or tokens.max() == length - 1)
    with pytest.raises(SystemExit, match=f"text: {least - 1} tokens, expected {least} for {each} pieces"):
        study.pieces({"text": str(least - 1)}, tokenizer, each)


def test_novels_cannot_be_had_without_apt_get(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdata", types.ModuleType("rdata"))
    austen = importlib.import_module("austen")
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="no apt-get and no dpkg-deb here"):
        austen.novels()


def test_the_example_file_keeps_evenly_spaced_rows_of_the_heads_that_it_names():
    example = importlib.import_module("example_data")
    positions = torch.tensor([*range(7, 300), *range(300, 6000, 2), *range(6000, 7658)])
    found = {}
    for layer in (0, 10):
        shapes = [(9, len(positions), 4), (3, 7658, 4)]
        q, k = (torch.zeros(shape) + layer + 100 * torch.arange(shape[0])[:, None, None] for shape in shapes)
        name = f"model.layers.{layer}.self_attn"
        found |= {f"{name}.q": q, f"{name}.k": k, f"{name}.positions": positions}
    tensors = example.kept(found, [0, 10], slice(1, 2))
    lengths = tensors.pop("positions") + 1
    assert lengths[0] == 64 and lengths[-1] == 7658
    # Below n = 150 every row is one; beyond, steps are of 0.7 %, and the recorder's of 2 are not even.
    step = (lengths.diff() / lengths[1:])[lengths[1:] > 600]
    assert 630 < len(lengths) <= example.ROWS and 0.003 < step.min() and step.max() < 0.011
    assert {name: values[:, 0, 0].tolist() for name, values in tensors.items()} == {
        "layer00.q": [300, 400, 500],
        "layer00.k": [100],
        "layer10.q": [310, 410, 510],
        "layer10.k": [110],
    }
