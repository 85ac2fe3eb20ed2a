"""The docstring check finds the faults that it names, and accepts the forms that the package uses."""

from __future__ import annotations

import ast

import pytest

from tests.check_docstrings import definitions, findings

GOOD = '''
class Layer:
    """A layer.

    Args:
        height, width: in pixels; see `Other` for more: it says why.
        scale: a factor
            that goes on.
        **options: passed on.
    """

    def __init__(self, height, width, scale, **options): ...
'''


def faults(source: str) -> list[str]:
    return [fault for name, node in definitions(ast.parse(source)) for fault in findings(name, node)]


def test_arguments_may_share_a_description():
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("width, scale, **", "scale, **", "'width', which is no argument"),
        ("scale: a factor", "height: a factor", "documents 'height' twice"),
        ("scale: a factor", "a factor", "names no argument"),
        ("in pixels; see", "in pixels. scale: a factor; see", "scale shares a line with another argument"),
        ('"""A layer.\n', '"""', "instead of a summary sentence"),
        ("A layer.", "What a network is made of.", "begins with 'What'"),
    ],
)
def test_each_fault_is_found(old, new, fault):
    assert old in GOOD
    assert any(fault in found for found in faults(GOOD.replace(old, new, 1)))
