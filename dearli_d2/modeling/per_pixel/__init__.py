"""Heads that classify every pixel."""

from .dpt import DPTHead
from .upsample import UpsampleHead

__all__ = ["DPTHead", "UpsampleHead"]
