"""Data: catalog, mappers, streams, the generated miniworld."""

from ..structures import Targets

__all__ = ["Targets"]
