"""A stable import path of public functions; they live in `clustering`, `mask2former.losses`, `per_pixel.losses`."""

from .clustering import cosine_kmeans
from .mask2former.losses import mask_bce, mask_dice
from .per_pixel.losses import dyce_loss

__all__ = ["cosine_kmeans", "dyce_loss", "mask_bce", "mask_dice"]
