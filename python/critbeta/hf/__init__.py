"""Hugging Face models: record what their attention sees, run them under a rescaling. Needs torch and transformers 5."""

from __future__ import annotations

from ._record import Recorder, record
from ._rescale import Rescaled, rescale
from ._table import Table

__all__ = ["Recorder", "Rescaled", "Table", "record", "rescale"]
