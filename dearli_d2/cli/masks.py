"""`dearli masks`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .base import FILE_OR_FOLDER, POSITIVE, Group, shared_out

if TYPE_CHECKING:
    from ..masks.generate import Generator


@click.group(cls=Group)
def masks() -> None:
    """Makes class-agnostic masks for the decoder warm-up, and pictures of them.

    Examples:

        dearli masks generate --images my_data/images --out masks --generator classical
        dearli masks view --images my_data/images --masks masks --out mask_pictures
    """


def _image_source(function: Callable) -> Callable:
    """The options `--dataset` and `--images`, of which one is given."""
    for option in (
        click.option("--images", type=FILE_OR_FOLDER, metavar="FOLDER", help="Folder of images."),
        click.option("--dataset", metavar="NAME", help="Data set or view, such as ade20k_panoptic_train."),
    ):
        function = option(function)
    return function


@masks.command(one_of=("dataset", "images"))
@_image_source
@click.option("--out", type=FILE_OR_FOLDER, metavar="FOLDER", required=True, help="A later call continues there.")
@click.option(
    "--generator",
    type=click.Choice(("sam", "classical", "sa1b")),
    default="sam",
    show_default=True,
    help="Who segments; sa1b takes the masks that SA-1B brings along.",
)
@click.option(
    "--model", type=click.Choice(("vit_b", "vit_l", "vit_h")), default="vit_h", show_default=True, help="Size of SAM."
)
@click.option(
    "--weights", metavar="FILE", help="SAM's checkpoint: a file; `dearli weights get sam/vit_h` downloads it."
)
@click.option("--points-per-side", type=POSITIVE, default=32, metavar="N", show_default=True, help="Of SAM's grid.")
@click.option(
    "--predicted-iou",
    type=float,
    default=0.88,
    metavar="X",
    show_default=True,
    help="Least score that SAM gives a mask.",
)
@click.option(
    "--stability", type=float, default=0.95, metavar="X", show_default=True, help="Least stability of a mask."
)
@click.option(
    "--prompts",
    type=POSITIVE,
    default=256,
    metavar="N",
    show_default=True,
    help="Points decoded at a time. Fewer need less memory.",
)
@click.option(
    "--batch-size", type=POSITIVE, default=1, metavar="N", show_default=True, help="Images encoded at a time."
)
@shared_out
def generate(
    dataset: str | None,
    images: Path | None,
    out: Path,
    batch_size: int,
    shard: str | None,
    **segmentation: Any,
) -> None:
    """Makes the masks of a data set or of a folder of images that are missing.

    SAM segments the images; its published weights are needed. A classical method needs none, and SA-1B has its masks beside the
    images already. The same command continues after an interruption. Several processes share the images: torchrun on one machine, --shard on several.

    Examples:

        dearli masks generate --images my_data/images --out masks --generator classical
        dearli masks generate --dataset miniworld_train --out masks_sam --weights sam_vit_h_4b8939.pth
        dearli masks generate --dataset sa1b_train --out masks_sa1b --generator sa1b
        torchrun --nproc-per-node 2 -m dearli_d2 masks generate --images my_data/images --out masks_2 --generator classical
    """
    from ..masks.generate import generate, parse_shard
    from ..masks.sa1b import import_masks
    from ..masks.storage import MaskFolder

    folder, part = MaskFolder(out), parse_shard(shard)
    if segmentation["generator"] == "sa1b":
        counts = import_masks(_files(dataset, images), folder, part)
    else:
        generator = _generator(**segmentation)
        counts = generate(_files(dataset, images), generator, folder, batch_size, part)
    print(
        f"{out}: {counts['done']} images done ({counts['masks']} masks), {counts['present']} were there, "
        f"{counts['failed']} could not be read"
    )


@masks.command(one_of=("dataset", "images"))
@_image_source
@click.option(
    "--masks",
    "folder",
    type=FILE_OR_FOLDER,
    metavar="FOLDER",
    required=True,
    help="What `dearli masks generate` wrote.",
)
@click.option("--out", type=FILE_OR_FOLDER, metavar="FOLDER", required=True, help="Folder of the pictures.")
@click.option("--count", type=POSITIVE, default=12, metavar="N", show_default=True, help="Pictures to write.")
def view(dataset: str | None, images: Path | None, folder: Path, out: Path, count: int) -> None:
    """Writes pictures of some of the masks.

    Example:

        dearli masks view --images my_data/images --masks masks --out mask_pictures
    """
    from ..masks.pictures import write_pictures

    for path in write_pictures(_files(dataset, images), folder, out, count):
        print(path)


def _files(dataset: str | None, images: Path | None) -> list[str]:
    from ..data.catalog import dataset_dicts
    from ..data.images import find_images

    return [str(p) for p in find_images([images])] if images else [d["file_name"] for d in dataset_dicts(str(dataset))]


def _generator(
    generator: str,
    model: str,
    weights: str | None,
    points_per_side: int,
    predicted_iou: float,
    stability: float,
    prompts: int,
    device: str | None,
) -> Generator:
    from ..errors import ConfigError
    from ..files import file_digest
    from ..masks.classical import ClassicalGenerator
    from ..masks.generate import default_device
    from ..masks.sam import SamGenerator, load_sam

    if generator == "classical":
        return ClassicalGenerator()
    if not weights:
        raise ConfigError(
            f"--generator sam needs --weights, the checkpoint file of --model: `dearli weights get sam/{model}` downloads it and "
            "prints where it is. --generator classical needs none"
        )
    sam = load_sam(model, weights, device or default_device())
    digest = file_digest(weights)
    return SamGenerator(sam, points_per_side, prompts, predicted_iou, stability, name=model, digest=digest)
