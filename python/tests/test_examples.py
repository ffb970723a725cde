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
