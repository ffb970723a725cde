"""Hugging Face models, recorded, rescaled, and followed in training. It needs torch and transformers 5."""

from __future__ import annotations

from .._table import Table

try:
    from ._monitor import Monitor
    from ._record import Recorder, record
    from ._rescale import Rescaled, rescale
except ImportError as error:
    expected = "pip install torch 'transformers>=5'"
    raise ImportError(f"critbeta.hf needs torch and transformers 5: {expected} ({error})") from error

__all__ = ["Monitor", "Recorder", "Rescaled", "Table", "record", "rescale"]
