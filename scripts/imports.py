#!/usr/bin/env python3
"""Imports of the Rust modules run one way: no two files, and no two folders side by side, import each other.

    scripts/imports.py [CRATE_FOLDER ...]    by default the library, the diagnosis crate, the Python bindings

It reads `crate::` and `super::` paths outside of tests, and follows `pub use` to the file that defines a
name. A file and its folder's `mod.rs` may not import each other either. The last line is `N files, 0
circles`."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATH = re.compile(
    r"\b(?:crate|super|self)(?:::\w+)+(?:::\{)?"
    r"|\bpub(?:\([^)]*\))? use (?!crate|super|self)\w+(?:::\w+)*(?:::\{)?"
)


def code_of(file):
    """The text without comments, strings and the tests at its end."""
    text = file.read_text()
    text = re.sub(r"//.*|\"(?:\\.|[^\"\\])*\"|\(in [\w:]+\)", "", text)
    return re.split(r"#\[cfg\((?:all\()?test\b[^\n]*\]\s*(?:pub(?:\([^)]*\))? )?mod \w+ \{", text)[0]


def braces(text, start):
    """The paths of a `{a, b::{c, d}}` that begins at `start`, each relative to it."""
    depth, names, prefix, name = 0, [], [], ""
    for at in range(start, len(text)):
        char = text[at]
        if char == "{":
            depth += 1
            prefix.append(name.strip().removesuffix("::"))
            name = ""
        elif char in ",}":
            if name.strip():
                names.append("::".join([*filter(None, prefix), name.split(" as ")[0].strip()]))
            name = ""
            if char == "}":
                depth -= 1
                prefix.pop()
                if depth == 0:
                    return names
        else:
            name += char
    return names


class Crate:
    def __init__(self, folder):
        self.source = folder / "src"
        self.files = {
            self.module(file): file for file in sorted(self.source.rglob("*.rs")) if "bin" not in file.parts
        }
        self.code = {module: code_of(file) for module, file in self.files.items()}
        self.given = {module: dict(self.reexports(module)) for module in self.files}

    def module(self, file):
        parts = file.relative_to(self.source).with_suffix("").parts
        # cuda/enabled.rs is the module `driver`; disabled.rs stands in its place without the feature.
        return tuple({"enabled": "driver"}.get(part, part) for part in parts if part not in ("lib", "mod"))

    def paths(self, module):
        """Every path in the code of a module, as names from the root of the crate."""
        for found in PATH.finditer(self.code[module]):
            text = found.group().split(" use ")[-1]
            tails = braces(self.code[module], found.end() - 1) if text.endswith("{") else [""]
            for tail in tails:
                names = [name for name in (text.rstrip("{") + tail).split("::") if name]
                yield found.group(), self.absolute(module, names)

    def absolute(self, module, names):
        if names[0] == "crate":
            return tuple(names[1:])
        here = list(module)
        while names and names[0] in ("super", "self"):
            here = here[:-1] if names[0] == "super" else here
            names = names[1:]
        return (*here, *names)

    def reexports(self, module):
        for text, path in self.paths(module):
            if " use " in text and path:
                yield path[-1], path

    def file_of(self, path, depth=0):
        """The module that defines what a path names."""
        module = ()
        for at, name in enumerate(path):
            if (*module, name) in self.files:
                module = (*module, name)
            elif depth < 9 and name in self.given.get(module, {}) and self.given[module][name] != path:
                return self.file_of((*self.given[module][name], *path[at + 1 :]), depth + 1)
            else:
                break
        return module

    def imports(self):
        for module in self.files:
            for _, path in self.paths(module):
                target = self.file_of(path)
                if target != module and target in self.files:
                    yield module, target


def circle(edges):
    """A circle of the graph, or nothing."""
    graph = {}
    for a, b in edges:
        graph.setdefault(a, set()).add(b)
    done, stack = set(), []

    def visit(node):
        if node in stack:
            return stack[stack.index(node) :]
        if node in done:
            return None
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if found := visit(other):
                return found
        done.add(stack.pop())
        return None

    for node in sorted(graph):
        if found := visit(node):
            return found
    return None


def main():
    folders = [pathlib.Path(name) for name in sys.argv[1:]] or [ROOT, ROOT / "diagnose", ROOT / "python"]
    count, circles = 0, 0
    for folder in folders:
        crate = Crate(folder)
        count += len(crate.files)
        edges = set(crate.imports())
        # Files, and then the folders of each folder: an import between two of them counts where their paths
        # part.
        levels = {"files": edges}
        for a, b in edges:
            shared = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
            if shared is not None:
                level = "::".join(("crate", *a[:shared]))
                levels.setdefault(level, set()).add((a[: shared + 1], b[: shared + 1]))
        for level, of_level in levels.items():
            if found := circle(of_level):
                circles += 1
                names = " -> ".join("::".join(name) or "crate" for name in [*found, found[0]])
                print(f"{folder.name}, {level}: {names}")
    print(f"{count} files, {circles} circles")
    return circles > 0


if __name__ == "__main__":
    sys.exit(main())
