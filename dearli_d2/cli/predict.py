"""`dearli predict`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .base import FILE_OR_FOLDER, POSITIVE, Overrides, command, config_file, on_ray

if TYPE_CHECKING:
    from ..tiles import Tiles


def at_scale(command: Callable) -> Callable:
    """The options of predictions of many images."""
    command = on_ray(command)
    for option in (
        click.option("--overlap", type=click.IntRange(min=0), metavar="PIXELS", help="Pixels that neighbouring tiles share; default: an eighth of --tile."),
        click.option("--tile", type=POSITIVE, metavar="PIXELS", help="Cut larger images into tiles of this side; segments are joined across the seams."),
        click.option("--workers", type=POSITIVE, metavar="N", help="Threads that read images, and that write; default: by the number of cores."),
        click.option("--shard", metavar="I/N", help="This process's share of the images, from 0/N to N-1/N; default: as torchrun or srun says."),
        click.option("--amp", type=click.Choice(("bf16", "fp16")), help="Run the network in this precision, by autocast."),
        click.option("--batch", type=POSITIVE, default=1, metavar="N", show_default=True, help="Images that go through the network at once: neighbours of one size."),
    ):  # fmt: skip
        command = option(command)
    return command


@command()
@click.argument("words", cls=Overrides, metavar="IMAGE... [KEY VALUE]...", required=True)
@config_file
@click.option("--weights", metavar="FILE", help="Checkpoint; default: MODEL.WEIGHTS of the config.")
@click.option("--out", type=FILE_OR_FOLDER, metavar="FOLDER", required=True, help="Folder to write.")
@click.option(
    "--text",
    metavar="CLASSES",
    help="Other classes than those of training, 'cat, dog|puppy, grass': a comma between classes, | between synonyms. "
    "For models with a text classifier.",
)
@click.option(
    "--captions",
    type=FILE_OR_FOLDER,
    metavar="FILE",
    help='JSON lines {"file", "caption"}, for a model that reads captions.',
)
@click.option(
    "--files",
    metavar="KINDS",
    default="panoptic,semantic,overlay",
    show_default=True,
    help="Files to write of each image, with commas: panoptic (always), semantic, overlay, overlay.jpg (smaller and faster), confidence.",
)
@click.option(
    "--format",
    "formats",
    metavar="NAME",
    multiple=True,
    help="Also write the labels of all images in a format of labelling tools, to the folder NAME in --out. It may be given several "
    "times. `dearli data formats` lists them.",
)
@click.option("--overwrite", is_flag=True, help="Replace predictions of another model or of other images in --out.")
@at_scale
def predict(
    words: tuple[str, ...],
    config_file: str,
    weights: str | None,
    out: Path,
    text: str | None,
    captions: Path | None,
    files: str,
    formats: tuple[str, ...],
    overwrite: bool,
    batch: int,
    amp: str | None,
    shard: str | None,
    workers: int | None,
    tile: int | None,
    overlap: int | None,
    **ray: Any,
) -> int:
    """Segments image files with a trained model.

    IMAGE is an image file or a folder of them. For each image three files are written, named after the path of the image below
    the folder that was given: `day/b.jpg` becomes `day/b_panoptic.png`. With several arguments it is the path below the folder
    that holds all of them. Where images differ in the suffix only, the suffix stays: `b.jpg_panoptic.png`, `b.png_panoptic.png`.

        NAME_panoptic.png   segment id = R + 256 G + 65536 B, 0 = no segment
        NAME_semantic.png   class of each pixel, as its id in the training data; for own masks, the pixel value there;
                            with --text its place in that list, from 0
        NAME_overlay.png    the segments over the image, with a legend
        NAME_confidence.png with --files: 0 to 255, the probability of each pixel's class

    `predictions.json` is a COCO-panoptic file of all images, in the same ids, with a confidence ("score") of each segment. Its "info" holds "complete": false while it is
    written, or if that was interrupted. Images that cannot be read are reported, skipped and listed there.

    The same command may be repeated, also with more images. Predictions of another model or of other images are not replaced
    without --overwrite, and pictures of earlier predictions are not taken for images. In Python: `dearli_d2.Predictor`.

    Examples:

        dearli predict --config-file output/miniworld/m2f_lang/config.yaml \\
            --weights output/miniworld/m2f_lang/model_final.pth photo.jpg folder/ --out predictions
        dearli predict --config-file output/miniworld/m2f_lang/config.yaml \\
            --weights output/miniworld/m2f_lang/model_final.pth photo.jpg --out other_words --text "meadow|grass, sky, red thing"
    """
    from ..config import get_config
    from ..pipeline import parse_shard
    from ..predict import Predictor, captions_of, identity, precision, predict_files, use_own_gpu
    from ..prediction_files import chosen_kinds
    from ..prediction_folder import PredictionFolder, find_inputs
    from ..ray_engine import chosen_cluster

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    images, overrides = split_at_first_key(words)
    kinds, part = chosen_kinds([word.strip() for word in files.split(",") if word.strip()]), parse_shard(shard)
    tiles = tiles_of(tile, overlap)
    inputs = find_inputs(images)
    use_own_gpu()
    with chosen_cluster(**ray) as cluster:
        predictor = Predictor(get_config(config_file, overrides), weights, text)
        dtype = precision(amp, predictor)
        of_images = None if captions is None else captions_of(inputs, captions)
        run = identity(predictor, text, captions, amp, tiles)
        folder = PredictionFolder(out, inputs, run, overwrite, kinds, formats)
        done = predict_files(predictor, folder, of_images, batch, dtype, part, workers, cluster, tiles)
    print(
        json.dumps(
            {"predicted": done.predicted, "skipped": len(done.skipped), "complete": done.complete, "out": str(out)}
        )
    )
    return 0 if done.predicted else 1


def tiles_of(tile: int | None, overlap: int | None) -> Tiles | None:
    """The tiles that `--tile` and `--overlap` name. Raises `ConfigError`."""
    from ..errors import ConfigError
    from ..tiles import Tiles

    if tile is None and overlap is not None:
        raise ConfigError("--overlap needs --tile")
    return None if tile is None else Tiles(tile, tile // 8 if overlap is None else overlap)


def split_at_first_key(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Images, and KEY VALUE pairs behind them. What is a file or a folder is no key."""
    from detectron2.config import get_cfg

    from ..config import add_dearli_config

    config = get_cfg()
    add_dearli_config(config)
    count = next((i for i, w in enumerate(words) if w.split(".")[0] in config and not Path(w).exists()), len(words))
    return list(words[:count]), list(words[count:])
