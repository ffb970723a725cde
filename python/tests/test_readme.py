"""The Python of the README, as it stands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(SNIPPETS) == 2
    return lambda number, given: exec(compile(SNIPPETS[number], f"README.md, snippet {number + 1}", "exec"), given)


def test_models(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=99
    )
    torch.manual_seed(1)
    run(0, {"model": transformers.LlamaForCausalLM(config).eval(), "inputs": {"input_ids": torch.randint(99, (1, 200))}})
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "qk.safetensors", "cal.json"}


def test_arrays(run, tmp_path):
    run(1, {})
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
