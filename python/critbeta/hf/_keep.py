"""The files of what a recording keeps."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from .. import _core

_DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
}


def save(recording: _core.Recording, path: str | os.PathLike[str], model: str) -> list[Path]:
    """Writes a file for each text, scale, and kind of tensors: to `path`, or to its stem with numbers."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected a name that ends in .safetensors")
    count = recording.file_count()
    width = len(str(count - 1))
    written = []
    for number in range(count):
        text, scale, tensors = recording.file(number)
        to = path if count == 1 else path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}")
        metadata = {} if scale is None else {"scale": repr(scale)}
        named = {}
        for name, kind, shape, elements in tensors:
            named[name] = torch.from_numpy(elements).view(_DTYPES[kind]).view(shape)
        _write(to, named, {**metadata, "model": model, "text": str(text)})
        written.append(to)
    return written


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes a file whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".critbeta-") as folder:
        whole = Path(folder) / path.name
        save_file(tensors, whole, metadata=metadata)
        os.replace(whole, path)
