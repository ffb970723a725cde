"""The Python of the READMEs and of docs/ runs as it stands, and the metadata of the wheel has a README.

The blocks of a page run one after the other, in one namespace with a small `model` and its `inputs`. A block
behind the comment `<!-- not run -->` only has to compile.
"""

import importlib.metadata
import re
from pathlib import Path

import critbeta
import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^(<!-- not run -->\s*)?```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
READMES = [ROOT / "README.md", ROOT / "python" / "README.md"]
PAGES = {path: BLOCK.findall(path.read_text()) for path in [*READMES, *sorted(ROOT.glob("docs/*.md"))]}
WITH_BLOCKS = [pytest.param(path, id=str(path.relative_to(ROOT))) for path, blocks in PAGES.items() if blocks]
# A file that a block writes, as in report("report.html").
FILE = re.compile(r'"([\w-]+\.(?:html|json|parquet|safetensors))"')


def small_model():
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, vocab_size=99)
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    inputs = {"input_ids": torch.randint(99, (1, 200))}
    return {"model": transformers.LlamaForCausalLM(config).eval(), "inputs": inputs}


@pytest.mark.parametrize("path", WITH_BLOCKS)
def test_the_python_of_a_page_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = small_model() if any("model" in block for not_run, block in PAGES[path] if not not_run) else {}
    written = set()
    for number, (not_run, block) in enumerate(PAGES[path], 1):
        code = compile(block, f"{path.name}, block {number}", "exec")
        if not not_run:
            exec(code, given)
            written.update(FILE.findall(block))
    assert written <= {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize("path", READMES, ids=["README.md", "python/README.md"])
def test_a_readme_shows_python_that_runs(path):
    assert any(not not_run for not_run, _ in PAGES[path])


def test_the_wheel_has_a_readme_a_version_and_links():
    metadata = importlib.metadata.metadata("critbeta")
    assert metadata["Version"] == critbeta.__version__
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    assert metadata.get_payload().strip() == READMES[1].read_text().strip()
    assert metadata.get_all("License-File") and metadata.get_all("Project-URL")
    for name in metadata.get_all("License-File"):
        (file,) = [file for file in importlib.metadata.files("critbeta") if file.name == name]
        assert file.read_text() == (ROOT / name).read_text()
