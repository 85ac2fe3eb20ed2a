"""Training: the loop, the teacher, pseudo-labels, hooks around a step."""

from __future__ import annotations

from .teacher import EMATeacher

__all__ = ["EMATeacher"]
