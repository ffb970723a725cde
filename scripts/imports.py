#!/usr/bin/env python3
"""Imports of the Rust modules run one way: no two files, and no two folders side by side, import each other.

    scripts/imports.py [SOURCE_FOLDER ...]    by default the library, the diagnosis crate, the commands,
                                              and the Python bindings

It reads `crate::`, `super::` and `child::` paths outside of unit tests, and follows `pub use` to the file
that defines a name. A mod.rs and the files below it may share words. The last line is `N files, M circles`.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CRATES = ["candle", "capi", "diagnose", "gguf", "python"]
SOURCES = ["src", "diagnose/src/bin/critbeta", *(f"{crate}/src" for crate in CRATES)]
PLANTED = [
    ("use crate::b::c::f;", "use crate::a::g;"),
    ("use crate::{b::c};", "use super::super::{a};"),
    ("fn f() { crate::b::c::f() }", "#[cfg(test)]\nmod tests { fn x() {} }\nuse crate::a::{self, g};"),
]
PATH = re.compile(
    r"\b(?:crate|super|self)(?:(?:::\w+)+(?:::\{)?|::\{)"
    r"|\bpub(?:\([^)]*\))? use (?!crate|super|self)\w+(?:::\w+)*(?:::\{)?"
)


def code_of(text):
    """The code without comments, characters, strings and unit tests."""
    text = re.sub(r"//.*|'(?:\\.|[^\\'\n])'|\"(?:\\.|[^\"\\])*\"|\(in [\w:]+\)", "", text)
    tests = r"#\[cfg\((?:all\()?test\b[^\n]*\]\s*(?:pub(?:\([^)]*\))? )?mod \w+ \{"
    while found := re.search(tests, text):
        depth, end = 1, found.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        text = text[: found.start()] + text[end:]
    return text


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
    def __init__(self, source, code):
        """`code`: what stands in every file below the folder `source`."""
        self.source = source
        self.code = {self.module(file): code_of(text) for file, text in code.items()}
        self.given = {module: dict(self.reexports(module)) for module in self.code}

    def module(self, file):
        parts = file.relative_to(self.source).with_suffix("").parts
        # cuda/enabled.rs is the module `driver`; disabled.rs stands in its place without the feature.
        return tuple({"enabled": "driver"}.get(part, part) for part in parts if part not in ("lib", "main", "mod"))

    def paths(self, module):
        """Every path in the code of a module, as names from the root of the crate."""
        for found in PATH.finditer(self.code[module]):
            text = found.group().split(" use ")[-1]
            tails = braces(self.code[module], found.end() - 1) if text.endswith("{") else [""]
            for tail in tails:
                names = [name for name in (text.rstrip("{") + tail).split("::") if name]
                yield found.group(), self.absolute(module, names)
        for child in (other for other in self.code if other[:-1] == module and other):
            for found in re.finditer(rf"(?<![\w:]){child[-1]}((?:::\w+)+)", self.code[module]):
                yield found.group(), (*child, *found.group(1).split("::")[1:])

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
            if (*module, name) in self.code:
                module = (*module, name)
            elif depth < 9 and name in self.given.get(module, {}) and self.given[module][name] != path:
                return self.file_of((*self.given[module][name], *path[at + 1 :]), depth + 1)
            else:
                break
        return module

    def imports(self):
        for module in self.code:
            for _, path in self.paths(module):
                target = self.file_of(path)
                shared = min(len(module), len(target))
                # A mod.rs names the files below it, and they may use its words.
                if module[:shared] != target[:shared] and target in self.code:
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


def circles_of(source, code):
    """A circle of files, and one of each folder: an import between two folders counts where their paths part."""
    edges = set(Crate(source, code).imports())
    levels = {"files": edges}
    for a, b in edges:
        shared = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
        if shared is not None:
            level = "::".join(("crate", *a[:shared]))
            levels.setdefault(level, set()).add((a[: shared + 1], b[: shared + 1]))
    for level, of_level in levels.items():
        if found := circle(of_level):
            yield f"{level}: " + " -> ".join("::".join(name) or "crate" for name in [*found, found[0]])


def main():
    sources = [pathlib.Path(name) for name in sys.argv[1:]] or [ROOT / source for source in SOURCES]
    count, circles = 0, 0
    for source in sources:
        # A command is a crate of its own.
        files = [file for file in sorted(source.rglob("*.rs")) if "bin" not in file.relative_to(source).parts]
        code = {file: file.read_text() for file in files}
        count += len(code)
        for found in circles_of(source, code):
            circles += 1
            print(f"{source}, {found}")
        # The check itself must find a circle of two files, in each of the forms that imports have.
        for there, back in PLANTED:
            planted = {source / "a.rs": there, source / "b/mod.rs": "mod c;", source / "b/c.rs": back}
            assert list(circles_of(source, planted)), f"not found: {there} {back}"
    print(f"{count} files, {circles} circles")
    return circles > 0


if __name__ == "__main__":
    sys.exit(main())
