"""Every command that the project prints for a user to type, read from its documents by code."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = re.compile(
    r"(?:[A-Z][A-Z0-9_]*=\S+ +)*(?:dearli|python|torchrun|make|docker|pip|bash|source|export|cp|cat)(?= )"
)
_PYTHON = re.compile(r"(?:[A-Z][A-Z0-9_]*=\S+ +)*(?:dearli |python (?:-m |\S+\.py\b)|torchrun )")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """`text` as a user types it, on one line; `source` is the file below the checkout that prints it first; `typed`: it stands
    in a block of commands, not inside a sentence."""

    text: str
    source: str
    typed: bool

    @property
    def words(self) -> tuple[str, ...]:
        """As a shell splits it, without comment and without `NAME=value` before the program."""
        words = shlex.split(self.text, comments=True)
        while re.match(r"[A-Z][A-Z0-9_]*=", words[0]):
            words.pop(0)
        return tuple(words)


def printed_commands(root: Path) -> list[Command]:
    """All commands of a checkout, each text once, in the order of the documents."""
    found: dict[str, Command] = {}
    for source, text, typed in _all(root):
        text = " ".join(text.split()) if "\n" not in text else text
        if text not in found or (typed and not found[text].typed):
            found[text] = Command(text, source, typed)
    return list(found.values())


def _all(root: Path) -> Iterator[tuple[str, str, bool]]:
    readers = (
        (("README.md", "CONTRIBUTING.md", "datasets/README.md", "docs/**/*.md"), of_markdown),
        (("Makefile",), of_makefile),
        (("Dockerfile", "configs/**/*.yaml", "scripts/*.sh"), of_comments),
        (("train_net.py", "dearli_d2/**/*.py", "datasets/*.py", "benchmarks/*.py", "scripts/*.py"), of_python),
    )
    for patterns, read in readers:
        for path in sorted({p for pattern in patterns for p in root.glob(pattern)}):
            for text, typed in read(path.read_text(encoding="utf-8")):
                yield path.relative_to(root).as_posix(), text, typed


def of_markdown(text: str) -> Iterator[tuple[str, bool]]:
    """Lines of shell blocks, and code in sentences that starts with a program."""
    for language, block in _FENCE.findall(text):
        if language in ("sh", "bash", "shell"):
            yield from ((line, True) for line in logical_lines(block.splitlines()))
    yield from _spans(_FENCE.sub("", text))


def of_makefile(text: str) -> Iterator[tuple[str, bool]]:
    """`make TARGET` of every target, and what the recipes run."""
    yield from ((f"make {target}", True) for target in _TARGET.findall(text))
    for line in logical_lines(line[1:] for line in text.splitlines() if line.startswith("\t")):
        yield line.replace("$(PY)", "python").replace("$(DEARLI)", "dearli").replace("$(VENV)", ".venv"), True


def of_comments(text: str) -> Iterator[tuple[str, bool]]:
    """Comment lines that are a command."""
    lines = (line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    yield from ((line, True) for line in logical_lines(lines) if _PROGRAM.match(line))


def of_python(text: str) -> Iterator[tuple[str, bool]]:
    """Lines of docstrings that are a command, and code in the sentences of any string. `--help` shows the docstrings."""
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented):
            lines = (ast.get_docstring(node) or "").splitlines()
            # a line of prose may begin with "make"; only Python's programs need no indentation
            lines = (line for line in lines if line.startswith("    ") or _PYTHON.match(line))
            yield from ((line, True) for line in logical_lines(lines) if _PROGRAM.match(line))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _spans(inspect.cleandoc(node.value))


def _spans(text: str) -> Iterator[tuple[str, bool]]:
    for span in _SPAN.findall(text):
        command = " ".join(span.split())
        if _PROGRAM.match(command):
            yield command, False


def logical_lines(lines: Iterable[str]) -> Iterator[str]:
    """Lines joined where a backslash ends one, without empty ones and comments."""
    pending = ""
    for line in lines:
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1].rstrip() + " "
            continue
        if pending and not pending.startswith("#"):
            yield pending
        pending = ""
