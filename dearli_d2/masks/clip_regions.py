"""Fills a cache of the regions that Split Matching learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode

from ..data.build import labeled_dicts
from ..errors import ConfigError
from ..methods.split_matching.data import whole_image
from ..methods.split_matching.region_folder import RegionFolder
from ..methods.split_matching.regions import RegionFinder, region_masks
from ..modeling import build_model
from ..structures import Regions
from ..visualization import save_mask_picture
from .generate import generate


@dataclass(frozen=True)
class RegionInput:
    """`image` (3, s, s) uint8 and `unannotated` (s, s) bool."""

    image: torch.Tensor
    unannotated: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, as of an image array."""
        return self.image.shape[1], self.image.shape[2]


class RegionGenerator:
    """A `RegionFinder` as `generate` wants it."""

    def __init__(self, finder: RegionFinder, settings: dict, device: str) -> None:
        self.finder, self.device, self._settings = finder, device, settings

    def settings(self) -> dict:
        """For the manifest."""
        return self._settings

    def __call__(self, inputs: Sequence[RegionInput]) -> list[Regions]:
        """Regions of each image."""
        images = torch.stack([i.image for i in inputs]).to(self.device)
        return self.finder(images, torch.stack([i.unannotated for i in inputs]).to(self.device))


def fill(cfg: CfgNode, out: Path, shard: tuple[int, int], batch_size: int, pictures: int) -> str:
    """Makes what is missing; returns a line on it."""
    if cfg.MODEL.META_ARCHITECTURE != "SplitMatching":
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no regions; it must be SplitMatching"
        )
    model = build_model(cfg).eval()
    generator = RegionGenerator(model.finder, model.cache_settings(cfg), str(model.device))
    dicts = {d["file_name"]: d for d in labeled_dicts(cfg)}
    size, folder = cfg.MODEL.SPLIT.REGIONS.IMAGE_SIZE, RegionFolder(out)
    for name in dicts:  # a damaged file is made again
        if folder.path(name).is_file() and folder.read(name) is None:
            folder.path(name).unlink()
    counts = generate(
        list(dicts),
        generator,
        folder,
        batch_size,
        shard,
        read=lambda name: RegionInput(*whole_image(dicts[name], size)),
    )
    chosen = list(dicts)[:: max(1, len(dicts) // pictures)][:pictures] if pictures else []
    for name in chosen:
        found = folder.read(name)
        if found is not None:
            image, unannotated = whole_image(dicts[name], size)
            masks = region_masks(found, unannotated).numpy()
            save_mask_picture(
                out / "pictures" / f"{Path(name).stem}.png", image.numpy().transpose(1, 2, 0).copy(), masks
            )
    return f"{out}: {counts['done']} images done, {counts['present']} were there, {counts['failed']} could not be read"
