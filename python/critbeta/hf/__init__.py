"""Hugging Face models: record what their attention sees, run them under a rescaling, follow them in training. Needs torch and transformers 5."""

from __future__ import annotations

try:
    from ._monitor import Monitor
    from ._record import Recorder, record
    from ._rescale import Rescaled, rescale
    from ._table import Table
except ImportError as error:
    raise ImportError(f"critbeta.hf needs torch and transformers 5: pip install torch 'transformers>=5' ({error})") from error

__all__ = ["Monitor", "Recorder", "Rescaled", "Table", "record", "rescale"]
