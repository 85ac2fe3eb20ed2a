"""Fills a cache of the regions that Split Matching learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode

from ...data.build import labeled_dicts
from ...errors import ConfigError
from ...masks.generate import fill_folder
from ...modeling import build_model
from ...pipeline import Work
from ...visualization import save_mask_picture
from .data import whole_image
from .model import SplitMatching
from .options import RegionOptions
from .region_folder import RegionFolder
from .regions import region_masks
from .structures import Regions


def fill(cfg: CfgNode, out: Path, shard: tuple[int, int], batch_size: int, pictures: int) -> str:
    """Makes the files of a cache that are missing.

    Args:
        cfg: the config of the training run.
        out: folder of the cache.
        shard: see `fill_folder`.
        batch_size: images at a time.
        pictures: number of pictures to write.

    Returns:
        A line that says how many images were done.

    Raises:
        ConfigError: the config is of another method, or the cache of other settings.
    """
    if cfg.MODEL.META_ARCHITECTURE != "SplitMatching":
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no regions; it must be SplitMatching"
        )
    model = build_model(cfg).eval()
    assert isinstance(model, SplitMatching)  # by the name above
    dicts = {d["file_name"]: d for d in labeled_dicts(cfg)}
    size, folder = RegionOptions.of(cfg).image_size, RegionFolder(out)

    def find(items: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[Regions]:
        images, unannotated = (torch.stack(x).to(model.device) for x in zip(*items, strict=True))
        return model.finder(images, unannotated)

    for name in dicts:  # a damaged file is made again
        if folder.path(name).is_file() and folder.read(name) is None:
            folder.path(name).unlink()

    def write(name: str, _: object, regions: Regions) -> dict[str, int]:
        folder.write(name, regions)
        return {}

    work = Work(lambda name: whole_image(dicts[name], size), find, write)
    counts = fill_folder(list(dicts), work, model.cache_settings(cfg), folder, batch_size, shard)
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
