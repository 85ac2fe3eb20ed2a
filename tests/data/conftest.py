"""Scripts of `datasets/` that a test has loaded are forgotten after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _made_up_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up downloads have a handful of images, which the scripts accept on demand only."""
    monkeypatch.setenv("DEARLI_INCOMPLETE", "1")


@pytest.fixture(autouse=True)
def _forget_scripts() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.startswith("prepare_")]:
        del sys.modules[name]
