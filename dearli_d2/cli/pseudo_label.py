"""`dearli pseudo-label`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import click

from .base import FILE_OR_FOLDER, command, overrides
from .predict import at_scale, tiles_of


@command("pseudo-label")
@click.argument("run", type=FILE_OR_FOLDER)
@click.option("--out", type=FILE_OR_FOLDER, metavar="FOLDER", help="Folder to write; default: RUN/pseudo_labels.")
@click.option(
    "--format",
    "formats",
    metavar="NAME",
    multiple=True,
    help="Format of labelling tools, written to the folder NAME in --out. It may be given several times; `dearli data formats` "
    "lists them.",
)
@click.option("--images", type=FILE_OR_FOLDER, metavar="FOLDER", help="Images; default: DATASETS.UNLABELED of the run.")
@click.option("--weights", metavar="FILE", help="Checkpoint; default: model_final.pth of the run.")
@click.option(
    "--which",
    type=click.Choice(("student", "teacher")),
    help="Whose weights; default: the teacher's, where the checkpoint has one.",
)
@click.option("--overwrite", is_flag=True, help="Replace labels of another model or of other images in --out.")
@at_scale
@overrides
def pseudo_label(
    run: Path,
    out: Path | None,
    formats: tuple[str, ...],
    images: Path | None,
    weights: str | None,
    which: str | None,
    overwrite: bool,
    batch: int,
    amp: str | None,
    shard: str | None,
    workers: int | None,
    tile: int | None,
    overlap: int | None,
    overrides: tuple[str, ...],
    **ray: Any,
) -> int:
    """Labels the unlabelled images of a training run, to be corrected in a labelling tool.

    RUN is the folder of the run. The files are those of `dearli predict`, with the confidence of each pixel. Each segment has a
    confidence of its own, which formats carry that have a place for it.

    Example:

        dearli pseudo-label output/mine --format coco-instances
    """
    from ..labels.convert import writable
    from ..pipeline import parse_shard
    from ..predict import precision, predict_files, use_own_gpu
    from ..prediction_files import KINDS
    from ..prediction_folder import PredictionFolder, find_inputs
    from ..ray_engine import chosen_cluster
    from ..run_model import RunModel

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    names, part = [writable(name) for name in formats], parse_shard(shard)
    tiles = tiles_of(tile, overlap)
    use_own_gpu()
    with chosen_cluster(**ray) as cluster:
        model = RunModel(run, weights, which, overrides)
        inputs = find_inputs([images] if images else model.unlabeled_images())
        predictor = model.predictor()
        dtype = precision(amp, predictor)
        identity = model.identity(predictor, amp, tiles)
        folder = PredictionFolder(out or run / "pseudo_labels", inputs, identity, overwrite, KINDS, names)
        done = predict_files(predictor, folder, None, batch, dtype, part, workers, cluster, tiles)
    print(
        json.dumps(
            {
                "labelled": done.predicted,
                "skipped": len(done.skipped),
                "complete": done.complete,
                "out": str(folder.out),
            }
        )
    )
    return 0 if done.predicted else 1
