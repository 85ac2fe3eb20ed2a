"""`dearli zero-shot`."""

from __future__ import annotations

from pathlib import Path

import click

from ...cli.base import FILE_OR_FOLDER, command, config_file, overrides


@command("zero-shot")
@config_file
@click.option("--out", type=FILE_OR_FOLDER, metavar="FOLDER", required=True, help="Folder of scores and pictures.")
@click.option(
    "--masks", type=FILE_OR_FOLDER, metavar="FOLDER", help="What `dearli masks generate` wrote for the same images."
)
@overrides
def zero_shot(config_file: str, out: Path, masks: Path | None, overrides: tuple[str, ...]) -> None:
    """Evaluates the CLIP model of a config alone: it classifies masks that are known, and nothing is trained.

    The masks are the annotated segments of the data sets DATASETS.TEST (DEARLi, Fig. 3), or those of the folder --masks. CLIP's
    features are pooled under each mask and compared with the texts of the classes. The config has a text classifier.

    Example:

        dearli zero-shot --config-file configs/miniworld/m2f_lang.yaml --out output/zero_shot
    """
    from ...config import get_config
    from .known_masks import evaluate

    scores = evaluate(get_config(config_file, [*overrides, "OUTPUT_DIR", str(out)]), masks)
    print(", ".join(f"{name} {value:.2f}" for name, value in scores.items()))
