"""`dearli env`."""

from __future__ import annotations

from .base import command


@command()
def env() -> None:
    """Prints versions, devices, folders, and which optional parts are present.

    Paste it into bug reports.

    Example:

        dearli env
    """
    from ..env import report

    print(report())
