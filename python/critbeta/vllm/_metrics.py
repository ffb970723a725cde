"""What vLLM's own metrics endpoint shows of the recorders in its processes."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

LOG = logging.getLogger("critbeta.vllm")
# The folders whose metrics are shown.
_SHOWN = set[str]()


def show_metrics(folder: str, every: float) -> None:
    """Has vLLM's own endpoint show what the processes of a server write to `folder`."""
    try:
        from prometheus_client import REGISTRY  # type: ignore[import-not-found, unused-ignore]
        from prometheus_client.parser import (  # type: ignore[import-not-found, unused-ignore]
            text_string_to_metric_families,
        )
    except ImportError:
        return

    class Files:
        def collect(self) -> Any:
            texts = []
            for file in sorted(Path(folder).glob("metrics-*.prom")):
                try:
                    # A process that is gone writes no more.
                    if time.time() - file.stat().st_mtime < 60 + 5 * every:
                        texts.append(list(text_string_to_metric_families(file.read_text(encoding="utf-8"))))
                except (OSError, ValueError) as error:
                    LOG.warning("%s is left out of the metrics: %s", file, error)
            yield from _merged(texts)

        def describe(self) -> Any:
            return []

    if folder not in _SHOWN:
        _SHOWN.add(folder)
        REGISTRY.register(Files())


def _merged(texts: Any) -> Any:
    """Returns the families of several texts, each once."""
    found: dict[str, Any] = {}
    for families in texts:
        for family in families:
            found.setdefault(family.name, family)
            if found[family.name] is not family:
                found[family.name].samples += family.samples
    return found.values()
