"""The files of what a recording keeps."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import _core

_DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
}


# The metadata entry of every file here. It holds the name that `save` was called with.
_MARK = "critbeta.save"


def _saved_as(path: Path) -> list[Path]:
    """Returns the files that calls of `save` with this path have written, and no others: what has the name
    but not the mark is not ours."""
    name = re.compile(rf"{re.escape(path.stem)}(-\d+)?{re.escape(path.suffix)}")
    found = []
    for file in path.parent.iterdir():
        if name.fullmatch(file.name) and file.is_file() and not file.is_symlink():
            if _mark(file) == path.name:
                found.append(file)
    return found


def _mark(file: Path) -> str | None:
    try:
        with safe_open(file, "pt") as tensors:
            return (tensors.metadata() or {}).get(_MARK)
    except (OSError, SafetensorError):
        return None


def _refuse_others(path: Path, files: list[Path]) -> None:
    """Raises FileExistsError for a file that is neither `path` nor of an earlier call for it."""
    for file in files:
        if file != path and file.exists() and _mark(file) != path.name:
            found = f"{file} is no file of an earlier save({path.name!r})"
            raise FileExistsError(f"{found}: move it, or save elsewhere")


def save(recording: _core.Recording, path: str | os.PathLike[str], model: str) -> list[Path]:
    """Writes a file for each text, scale, and kind of tensors: to `path`, or to its stem with numbers. Files
    that an earlier call left there are removed, for a diagnosis would mix the two."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected a name that ends in .safetensors")
    count = recording.file_count()
    width = len(str(count - 1))
    numbered = [path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}") for number in range(count)]
    written = [path] if count == 1 else numbered
    _refuse_others(path, written)
    for number, to in enumerate(written):
        text, scale, tensors = recording.file(number)
        metadata = {} if scale is None else {"scale": repr(scale)}
        named = {}
        for name, kind, shape, elements in tensors:
            named[name] = torch.from_numpy(elements).view(_DTYPES[kind]).view(shape)
        _write(to, named, {**metadata, "model": model, "text": str(text), _MARK: path.name})
    for left in _saved_as(path):
        if left not in written:
            left.unlink()
    return written


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes a file whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".critbeta-") as folder:
        whole = Path(folder) / path.name
        save_file(tensors, whole, metadata=metadata)
        os.replace(whole, path)
