"""Hugging Face models: record what their attention sees, run them under a rescaling. Needs torch and transformers 5."""

from __future__ import annotations

from ._rescale import Rescaled, rescale

__all__ = ["Rescaled", "rescale"]
