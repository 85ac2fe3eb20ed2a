"""Checks the docstrings of the package: a summary sentence first, then arguments that exist, one line each.

Ruff checks that public names have a docstring whose first line is a sentence. This script checks what ruff cannot, because
our Args sections may document several arguments on one line ("height, width: in pixels.").

    python tests/check_docstrings.py [FILE_OR_FOLDER ...]
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Attributes:")
_NAMES = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): ")
_SECOND = re.compile(r"[.;] (\w+(?:, \w+)*): ")
# a summary states what the thing does or is; a relative clause does not
_CLAUSES = ("What", "Whether", "Of", "As", "How", "Where", "When", "Which", "Whose", "Who", "If", "For")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Every class and function of a module with its dotted name, functions within functions excepted."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node, f"{prefix}{node.name}.")


def parameters(node: Definition) -> set[str] | None:
    """The names that an Args section may document; None where a base class or a decorator may add some."""
    if not isinstance(node, ast.ClassDef):
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        return {a.arg for a in (*named, arguments.vararg, arguments.kwarg) if a is not None}
    fields = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        return fields | (parameters(init) or set())
    return fields or None


def sections(docstring: str) -> dict[str, list[str]]:
    """The indented lines below each section's title; the title "" has the text before the first section."""
    result: dict[str, list[str]] = {"": []}
    current = ""
    for line in docstring.splitlines():
        if line in SECTIONS:
            current = line
        result.setdefault(current, []).append(line)
    return result


def findings(name: str, node: Definition) -> Iterator[str]:
    """The faults of one docstring."""
    docstring = ast.get_docstring(node)
    if not docstring:
        return
    parts = sections(docstring)
    summary = docstring.splitlines()[0]
    if not any(line.strip() for line in parts[""]):
        yield f"{name}: the docstring begins with {summary} instead of a summary sentence"
    elif summary.partition(" ")[0] in _CLAUSES:
        yield f"{name}: the summary begins with {summary.partition(' ')[0]!r}; begin with a verb or a noun"
    known = parameters(node)
    documented: list[str] = []
    for line in parts.get("Args:", [])[1:]:
        if not line.startswith("    ") or line.startswith("     "):
            continue  # an empty line, or a line that goes on
        match = _NAMES.match(line.strip())
        if match is None:
            yield f"{name}: the line {line.strip()[:40]!r} below Args names no argument"
            continue
        documented += [part.strip("* ") for part in match[1].split(",")]
        second = _SECOND.search(line)
        if second and known and all(part in known for part in second[1].split(", ")):
            yield f"{name}: {second[1]} shares a line with another argument"
    for argument in documented:
        if known is not None and argument not in known:
            yield f"{name}: Args documents {argument!r}, which is no argument"
        if documented.count(argument) > 1:
            yield f"{name}: Args documents {argument!r} twice"


def check(places: list[Path]) -> list[str]:
    """The faults of some files and of all modules below some folders, each as "file:line: text"."""
    faults = []
    for file in sorted(f for place in places for f in ([place] if place.is_file() else place.rglob("*.py"))):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for name, node in definitions(tree):
            faults += [f"{file}:{node.lineno}: {text}" for text in findings(name, node)]
    return faults


if __name__ == "__main__":
    found = check([Path(argument) for argument in sys.argv[1:] or ["dearli_d2"]])
    print("\n".join(found) or "docstrings: no fault")
    sys.exit(bool(found))
