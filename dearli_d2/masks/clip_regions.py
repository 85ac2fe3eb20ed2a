"""Fills a cache of the regions that Split Matching learns from.

Training with MODEL.SPLIT.REGIONS.CACHE FOLDER then reads them there, and makes itself what is missing. The same command
continues after an interruption. Several processes share the images: torchrun, or --shard 0/2 and --shard 1/2.

Example:

    python -m dearli_d2.masks.clip_regions --config-file configs/miniworld/split_matching.yaml --out regions --view 8
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode

from ..arguments import add_config_file, add_overrides, command_parser, positive
from ..config import get_config
from ..data.build import labeled_dicts
from ..errors import ConfigError
from ..methods.split_matching.data import whole_image
from ..methods.split_matching.region_folder import RegionFolder
from ..methods.split_matching.regions import RegionFinder, region_masks
from ..modeling import build_model
from ..reporting import report_errors
from ..structures import Regions
from ..visualization import save_mask_picture
from .generate import default_device, generate, parse_shard


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


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m dearli_d2.masks.clip_regions", __doc__)
    add_config_file(parser)
    parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="a later call continues there")
    parser.add_argument("--shard", metavar="I/N", help="this process's share of the images; default: as torchrun says")
    parser.add_argument(
        "--batch-size", type=positive, default=16, metavar="N", help="images at a time; default: %(default)s"
    )
    parser.add_argument("--view", type=int, default=8, metavar="N", help="pictures to write; default: %(default)s")
    parser.add_argument("--device", help="default: the GPU of this process, or cpu")
    add_overrides(parser)
    args = parser.parse_args(argv)

    def command() -> int:
        cfg = get_config(args.config_file, [*args.opts, "MODEL.DEVICE", args.device or default_device()])
        print(fill(cfg, args.out, parse_shard(args.shard), args.batch_size, args.view))
        return 0

    return report_errors(command)


if __name__ == "__main__":
    sys.exit(main())
