"""Imports of the package run one way: no file imports a file that imports it, directly or through others.

Imports in functions and under TYPE_CHECKING count. The packages that Python loads before a module in them do
not.
"""

import ast
import graphlib
import importlib.util
from pathlib import Path

import critbeta
import pytest


def graph(root):
    """Of every module in the package at `root`: the modules of the package that it names in an import."""
    paths = {}
    # The compiled module stands there as its stub.
    for path in [*root.rglob("*.py"), *root.rglob("*.pyi")]:
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: set(imported(name, path, paths)) for name, path in paths.items()}


def imported(name, path, modules):
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{base}.{alias.name}" for alias in node.names]
            found = [name if name in modules else base for name in names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            # A computed name is one of a server, not of the package.
            if not isinstance(node.args[0], ast.Constant):
                continue
            found = [importlib.util.resolve_name(node.args[0].value, package)]
        else:
            continue
        yield from (module for module in found if module in modules)


def test_no_two_files_import_each_other():
    found = graph(Path(critbeta.__file__).parent)
    assert {"critbeta", "critbeta.torch", "critbeta.hf", "critbeta.hf._record"} <= set(found)
    assert "critbeta.hf" in found["critbeta"] and "critbeta._cuda" in found["critbeta.torch"]
    graphlib.TopologicalSorter(found).prepare()


LINES = ["from . import b", "from .b import x", "import p.b", "importlib.import_module('.b', 'p')"]


@pytest.mark.parametrize("line", LINES)
def test_a_circle_is_found(tmp_path, line):
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(f"def late():\n    {line}\n")
    (package / "b.py").write_text("if TYPE_CHECKING:\n    from .a import late\n")
    with pytest.raises(graphlib.CycleError) as found:
        graphlib.TopologicalSorter(graph(package)).prepare()
    assert set(found.value.args[1]) == {"p.a", "p.b"}
