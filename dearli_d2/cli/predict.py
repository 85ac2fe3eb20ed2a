"""`dearli predict`."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from .base import FILE_OR_FOLDER, Overrides, command, config_file


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
    help="Files to write of each image, with commas: panoptic (always), semantic, overlay, confidence.",
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
    from ..predict import Predictor, captions_of, identity, predict_files
    from ..prediction_folder import PredictionFolder, find_inputs

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    images, overrides = split_at_first_key(words)
    kinds = kinds_of(files)
    inputs = find_inputs(images)
    predictor = Predictor(get_config(config_file, overrides), weights, text)
    of_images = None if captions is None else captions_of(inputs, captions)
    folder = PredictionFolder(out, inputs, identity(predictor, text, captions), overwrite, kinds, formats)
    skipped = predict_files(predictor, folder, of_images)
    done = len(inputs.paths) - len(skipped)
    print(json.dumps({"predicted": done, "skipped": len(skipped), "out": str(out)}))
    return 0 if done else 1


def kinds_of(text: str) -> list[str]:
    """The kinds of files that `--files` names. Raises `ConfigError` for an unknown one."""
    from ..errors import ConfigError
    from ..prediction_folder import KINDS

    kinds = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ConfigError(f"--files: there is no {', '.join(unknown)}; known are {', '.join(KINDS)}")
    return kinds


def split_at_first_key(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Images, and KEY VALUE pairs behind them. What is a file or a folder is no key."""
    from detectron2.config import get_cfg

    from ..config import add_dearli_config

    config = get_cfg()
    add_dearli_config(config)
    count = next((i for i, w in enumerate(words) if w.split(".")[0] in config and not Path(w).exists()), len(words))
    return list(words[:count]), list(words[count:])
