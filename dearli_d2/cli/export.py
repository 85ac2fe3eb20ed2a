"""`dearli export`."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import click

from .base import FILE_OR_FOLDER, Overrides, command


class Sides(click.ParamType):
    """`HxW`: height and width in pixels."""

    name = "sides"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The two numbers. Fails for another text."""
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value)
        if not found:
            self.fail(f"{value} is no size; write height x width, as 512x1024", param, ctx)
        return int(found[1]), int(found[2])


@command()
@click.argument("words", cls=Overrides, metavar="[RUN] [KEY VALUE]...")
@click.option(
    "--weights",
    metavar="FILE",
    help="Checkpoint; default: model_final.pth of RUN, or MODEL.WEIGHTS of the config. A checkpoint of a run holds its config.",
)
@click.option("--config-file", metavar="FILE", help="YAML file of the experiment, for weights that hold no config.")
@click.option("--out", type=FILE_OR_FOLDER, metavar="FILE", required=True, help="File to write: .onnx, .pt2 or .npz.")
@click.option(
    "--format",
    type=click.Choice(("onnx", "torch", "vocabulary")),
    default="onnx",
    show_default=True,
    help="onnx: a graph of ONNX operators. torch: a program of torch.export. vocabulary: the classes of --text for a graph of "
    "--open-vocabulary.",
)
@click.option("--half", is_flag=True, help="Layers with weights in float16, all else in float32. For onnx alone.")
@click.option(
    "--static", type=Sides(), metavar="HxW", help="One size of input, as some runtimes want; default: any size."
)
@click.option(
    "--open-vocabulary",
    is_flag=True,
    help="The classes become an input of the graph. For models with a text classifier. Their own classes are written beside --out.",
)
@click.option("--text", metavar="CLASSES", help="Other classes, as for dearli predict: 'cat, dog|puppy, grass'.")
@click.option(
    "--caption", metavar="TEXT", default="", help="The caption of all images, for a model that reads captions."
)
def export(
    words: tuple[str, ...],
    weights: str | None,
    config_file: str | None,
    out: Path,
    format: str,
    half: bool,
    static: tuple[int, int] | None,
    open_vocabulary: bool,
    text: str | None,
    caption: str,
) -> None:
    """Writes a trained model as one file for other programs.

    RUN is the folder of a training run. The file holds the network, and a description of how to prepare an image and how to read
    the outputs. `dearli_d2.deploy` predicts from an ONNX file without torch and detectron2. The file is checked, and compared with the
    model on random images, before it takes the name of --out. docs/export.md describes it.

    Examples:

        dearli export output/miniworld/m2f_lang --out model.onnx
        dearli export --weights output/miniworld/m2f_lang/model_final.pth --out small.onnx --half --static 256x256
        dearli export output/miniworld/m2f_lang --out open.onnx --open-vocabulary
        dearli export output/miniworld/m2f_lang --out other.npz --format vocabulary --text "meadow|grass, sky, red thing"
    """
    from ..export.command import predictor_of
    from ..export.write import check_suffix, export_model, write_vocabulary

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    check_suffix(out, format)
    predictor = predictor_of(words, config_file, weights, text)
    if format == "vocabulary":
        write_vocabulary(predictor, out)
        print(json.dumps({"out": str(out), "classes": len(predictor.model.known_taxonomy())}))
        return
    start = time.monotonic()

    def say(message: str) -> None:
        click.echo(f"{time.monotonic() - start:4.0f} s  {message}", err=True)

    found = export_model(predictor, out, format, half, static, open_vocabulary, caption, say)
    result = {
        "out": str(out),
        "megabytes": round(out.stat().st_size / 1e6, 1),
        "largest_difference": float(f"{found.difference:.2g}"),
        "same_labels": round(found.labels, 5),
    }
    print(json.dumps(result))
    if format == "onnx":
        classes = f" --vocabulary {out.with_suffix('.npz')}" if open_vocabulary else ""
        click.echo(f"predict with it: python -m dearli_d2.deploy {out} IMAGE... --out FOLDER{classes}", err=True)
