"""The parts of a server that a door uses, and what is said where one has moved. It needs no server."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple


class Server(NamedTuple):
    """An inference server that is installed."""

    package: str
    """The name of its package to import: "vllm"."""
    tested: str
    """The version that the door was tested with."""

    def part(self, module: str, *names: str) -> Any:
        """Returns a module of the server that has `names`. Raises RuntimeError where it has moved, and
        ImportError where it needs another package that is not installed."""
        path = f"{self.package}.{module}"
        try:
            found = importlib.import_module(path)
        except ImportError as error:
            if not (error.name or self.package).startswith(self.package):
                raise
            raise self.moved(path, str(error)) from error
        for name in names:
            if not hasattr(found, name):
                raise self.moved(f"{path}.{name}", "it is not there")
        return found

    def check(self, function: Any, names: tuple[str, ...]) -> None:
        """Raises RuntimeError unless a method of the server takes `names` first, after self."""
        found = tuple(inspect.signature(function).parameters)[1 : 1 + len(names)]
        if found != names:
            where = f"{function.__module__}.{function.__qualname__}"
            raise self.moved(where, f"takes ({', '.join(found)}, ...), expected ({', '.join(names)}, ...)")

    def moved(self, what: str, detail: str) -> RuntimeError:
        """Returns the error that names what is not where it was."""
        try:
            # A module without a distribution of its name says its version itself.
            own = getattr(importlib.import_module(self.package), "__version__", None) or version(self.package)
        except (ImportError, PackageNotFoundError):
            own = "of an unknown version"
        known = f"critbeta.{self.package} was tested with {self.package} {self.tested}, and this is {own}"
        return RuntimeError(
            f"{known}: {what}: {detail}. Install {self.package}=={self.tested}, or unset CRITBETA_*"
        )


VLLM = Server("vllm", "0.32.0")
SGLANG = Server("sglang", "0.5.23")
