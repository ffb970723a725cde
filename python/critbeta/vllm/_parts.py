"""The parts of vLLM that are used, and what is said where one has moved."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

TESTED = "0.32.0"


def part(module: str, *names: str) -> Any:
    """Returns a module of vLLM that has `names`. Raises RuntimeError where it has moved, and ImportError
    where it needs a package that is not installed."""
    path = f"vllm.{module}"
    try:
        found = importlib.import_module(path)
    except ImportError as error:
        if not (error.name or "vllm").startswith("vllm"):
            raise
        raise moved(path, str(error)) from error
    for name in names:
        if not hasattr(found, name):
            raise moved(f"{path}.{name}", "it is not there")
    return found


def moved(what: str, detail: str) -> RuntimeError:
    import vllm  # type: ignore[import-not-found, unused-ignore]

    version = getattr(vllm, "__version__", "of an unknown version")
    known = f"critbeta.vllm was tested with vLLM {TESTED}, and this is {version}"
    return RuntimeError(f"{known}: {what}: {detail}. Install vllm=={TESTED}, or unset CRITBETA_*")


def check(function: Any, names: tuple[str, ...]) -> None:
    """Raises RuntimeError unless a method of vLLM takes `names` first, after self."""
    found = tuple(inspect.signature(function).parameters)[1 : 1 + len(names)]
    if found != names:
        where = f"{function.__module__}.{function.__qualname__}"
        raise moved(where, f"takes ({', '.join(found)}, ...), expected ({', '.join(names)}, ...)")
