"""`dearli suggest`."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from .base import FILE_OR_FOLDER, POSITIVE, command, overrides


@command()
@click.argument("run", type=FILE_OR_FOLDER)
@click.option("--images", type=FILE_OR_FOLDER, metavar="FOLDER", help="Images; default: DATASETS.UNLABELED of the run.")
@click.option("--count", type=POSITIVE, default=20, metavar="N", show_default=True, help="Number of suggestions.")
@click.option("--out", type=FILE_OR_FOLDER, metavar="FOLDER", help="Folder to write; default: RUN/suggestions.")
@click.option(
    "--by",
    type=click.Choice(("both", "uncertainty", "random")),
    default="both",
    show_default=True,
    help="Both: uncertainty times distance from labelled and suggested images, with rare classes lifted.",
)
@click.option(
    "--format",
    "formats",
    metavar="NAME",
    multiple=True,
    help="Format of the labels to correct, written to the folder prelabels/NAME in --out. It may be given several times; "
    "`dearli data formats` lists them.",
)
@click.option(
    "--labeled", is_flag=True, help="Rank the labelled segments of the run by the model's doubt in their class."
)
@click.option("--weights", metavar="FILE", help="Checkpoint; default: model_final.pth of the run.")
@click.option("--overwrite", is_flag=True, help="Replace labels of other images in --out.")
@overrides
def suggest(
    run: Path,
    images: Path | None,
    count: int,
    out: Path | None,
    by: str,
    formats: tuple[str, ...],
    labeled: bool,
    weights: str | None,
    overwrite: bool,
    overrides: tuple[str, ...],
) -> int:
    """Suggests the images to label next, or the labels to look at again.

    RUN is the folder of a finished training run. Images that are labelled already are left out. Three things are written:

        suggestions.csv     rank, image, score and its parts, reasons
        suggestions.html    the images with what is doubtful outlined; it works offline
        prelabels/          what `dearli predict` writes of them, to be corrected, also in each --format

    The score of an image is the product of three numbers: how unsure the model is, how far the image is from all labelled and
    suggested ones, and how rare its predicted classes are among the labels. With --labeled the files are doubted.csv and
    doubted.html, of all labelled segments.

    The same command goes on where it was interrupted, and computes only images that are new or changed.

    Examples:

        dearli suggest output/mine --images photos --count 20 --format labelme
        dearli suggest output/mine --labeled
    """
    from ..labels.convert import writable
    from ..run_model import RunModel
    from ..suggest.doubted import find_doubted
    from ..suggest.unlabeled import suggest as suggest_images

    if labeled and (images or formats or by != "both"):
        raise click.UsageError(
            "--labeled takes no --images, --format and --by: it looks at the labelled images of the run"
        )
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    names, model, folder = [writable(name) for name in formats], RunModel(run, weights, None, overrides), out or run / "suggestions"  # fmt: skip
    if labeled:
        counts = find_doubted(model, folder, count)
    else:
        sources = [images] if images else model.unlabeled_images()
        counts = suggest_images(model, sources, folder, count, by, names, overwrite)
    print(json.dumps({**counts, "out": str(folder)}))
    return 0
