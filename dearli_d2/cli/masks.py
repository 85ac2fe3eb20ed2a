"""`dearli masks`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .base import FILE_OR_FOLDER, POSITIVE, Group, on_ray, shared_out

if TYPE_CHECKING:
    from ..masks.generator import MaskGenerator


@click.group(cls=Group)
def masks() -> None:
    """Makes class-agnostic masks for the decoder warm-up, and pictures of them.

    Examples:

        dearli masks generate --images my_data/images --out masks --generator classical
        dearli masks view --images my_data/images --masks masks --out mask_pictures
        dearli masks check masks
        dearli masks merge masks --out mask_files --layout files
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
    "--model",
    type=click.Choice(("vit_b", "vit_l", "vit_h", "sam2", "sam3")),
    default="vit_h",
    show_default=True,
    help="Size of SAM, or SAM 2 or SAM 3 of any size: pip install 'dearli_d2[sam2]'.",
)
@click.option(
    "--weights",
    metavar="FILE",
    help="SAM's checkpoint: a file; `dearli weights get sam/vit_h` downloads it. SAM 2 and 3: the folder with config.json, or the file "
    "of weights there, which `dearli weights get sam2.1/hiera_large` prints.",
)
@click.option("--points-per-side", type=POSITIVE, default=32, metavar="N", show_default=True, help="Of SAM's grid.")
@click.option(
    "--predicted-iou",
    type=float,
    metavar="X",
    help="Least score that SAM gives a mask.  [default: 0.88; SAM 2 and 3: 0.8]",
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
@click.option(
    "--precision",
    type=click.Choice(("bf16", "fp32")),
    help="Of SAM.  [default: bf16 on a GPU that has it, else fp32]",
)
@click.option("--replace", is_flag=True, help="Make the masks anew of images that have changed.")
@on_ray
@shared_out
def generate(
    dataset: str | None,
    images: Path | None,
    out: Path,
    batch_size: int,
    replace: bool,
    shard: str | None,
    engine: str,
    ray_address: str | None,
    ray_actors: int | None,
    **segmentation: Any,
) -> None:
    """Makes the masks of a data set or of a folder of images that are missing.

    SAM, SAM 2 or SAM 3 segments the images; its published weights are needed. A classical method needs none, and SA-1B has its masks
    beside the images already. The same command continues after an interruption, also after kill -9. Several processes share the
    images: torchrun on one machine, --shard on several. They may write to one folder.

    The masks lie in OUT/shards, zip files of 1000 images each; `dearli masks check OUT` reads them all, and `dearli masks merge`
    joins folders or writes a file for each image.

    Examples:

        dearli masks generate --images my_data/images --out masks --generator classical
        dearli masks generate --dataset miniworld_train --out masks_sam --weights sam_vit_h_4b8939.pth
        dearli masks generate --dataset miniworld_train --out masks_sam2 --model sam2 --weights sam2.1-hiera-large
        dearli masks generate --dataset sa1b_train --out masks_sa1b --generator sa1b
        torchrun --nproc-per-node 2 -m dearli_d2 masks generate --images my_data/images --out masks_2 --generator classical
    """
    from ..errors import ConfigError
    from ..masks.generate import LoadMasks, generate
    from ..masks.sa1b import import_masks
    from ..masks.storage import MaskFolder
    from ..pipeline import parse_shard, run
    from ..ray_engine import RayEngine, chosen_cluster

    folder, part = MaskFolder(out), parse_shard(shard)
    with chosen_cluster(engine, ray_address, ray_actors) as cluster:
        if segmentation["generator"] == "sa1b":
            if cluster is not None:
                raise ConfigError("--generator sa1b has no model to run on a cluster: leave out --engine ray")
            counts = import_masks(_files(dataset, images), folder, part, replace)
        else:
            load = LoadMasks(partial(_generator, **segmentation), folder)
            works = run if cluster is None else RayEngine(cluster, load, out / f"ray-{part[0]}-of-{part[1]}")
            generator = _generator(**segmentation)
            counts = generate(_files(dataset, images), generator, folder, batch_size, part, replace, works)
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


@masks.command()
@click.argument("folder", type=FILE_OR_FOLDER, metavar="FOLDER")
def check(folder: Path) -> None:
    """Reads all masks of a folder, with their checksums, and names what is damaged.

    Example:

        dearli masks check masks
    """
    from ..masks.generate import folder_of
    from ..masks.merge import verify

    counts = verify(folder_of(folder))
    megabytes = counts["bytes"] / 1e6
    print(
        f"{folder}: {counts['images']} images, {counts['masks']} masks, {megabytes:.1f} MB unpacked, {counts['shards']} shards"
    )


@masks.command()
@click.argument("folders", type=FILE_OR_FOLDER, nargs=-1, required=True, metavar="FOLDER...")
@click.option("--out", type=FILE_OR_FOLDER, metavar="FOLDER", required=True, help="A later call continues there.")
@click.option(
    "--layout",
    type=click.Choice(("shards", "files")),
    default="shards",
    show_default=True,
    help="shards: zip files of 1000 images; files: masks/NAME.json for each image, as SA-1B has them.",
)
def merge(folders: tuple[Path, ...], out: Path, layout: str) -> None:
    """Joins folders of masks, as of several machines, or writes one in another layout.

    The folders must have been made with the same settings. They are read and stay as they are.

    Examples:

        dearli masks merge machine_1/masks machine_2/masks --out masks
        dearli masks merge masks --out mask_files --layout files
    """
    from ..masks.generate import folder_of
    from ..masks.merge import merge
    from ..masks.storage import SHARD, MaskFolder

    count = merge([folder_of(f) for f in folders], MaskFolder(out, SHARD if layout == "shards" else 0))
    print(f"{out}: masks of {count} images")


def _files(dataset: str | None, images: Path | None) -> list[str]:
    from ..data.catalog import dataset_records
    from ..data.images import find_images

    return [str(p) for p in find_images([images])] if images else list(dataset_records(str(dataset)).files())


def _generator(
    generator: str,
    model: str,
    weights: str | None,
    precision: str | None,
    device: str | None,
    **options: Any,
) -> MaskGenerator[Any]:
    from ..masks.classical import ClassicalGenerator

    if generator == "classical":
        return ClassicalGenerator()
    from ..errors import ConfigError
    from ..masks.generate import default_device
    from ..masks.networks import load_generator

    if not weights:
        name = {"sam2": "sam2.1/hiera_large", "sam3": "sam3/sam3"}.get(model, f"sam/{model}")
        raise ConfigError(
            f"--generator sam needs --weights, the checkpoint of --model {model}: `dearli weights get {name}` downloads it and "
            "prints where it is. --generator classical needs none"
        )
    return load_generator(model, weights, device or default_device(), precision, **options)
