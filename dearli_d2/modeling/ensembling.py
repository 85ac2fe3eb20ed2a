"""A stable import path of public functions; they live in `clip.ensembling`."""

from .clip.ensembling import geometric_ensemble, mask_pool

__all__ = ["geometric_ensemble", "mask_pool"]
