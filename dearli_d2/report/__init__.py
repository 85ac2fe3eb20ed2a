"""One HTML file about training runs, from their folders alone; it works offline."""

from __future__ import annotations

from .page import write_report

__all__ = ["write_report"]
