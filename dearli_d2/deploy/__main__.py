"""`python -m dearli_d2.deploy MODEL.onnx IMAGE --out FOLDER`: what `dearli predict` does, without torch and detectron2."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.images import read_image
from ..files import file_digest
from ..pipeline import Work, chunks_of
from ..prediction_files import Maps, check_ids, chosen_kinds, per_pixel
from ..prediction_folder import PredictionFolder, Summary, WriteTask
from ..prediction_inputs import Task, find_inputs, tasks_of
from ..reporting import report_errors
from .predictor import PROVIDERS, OnnxPredictor

_EXAMPLE = "example:\n  python -m dearli_d2.deploy model.onnx photo.jpg folder/ --out predictions --threads 4"
_ALL = (0, 1)  # the one shard


@dataclass(frozen=True)
class _Image:
    pixels: np.ndarray


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        prog="python -m dearli_d2.deploy",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Segments image files with a model that dearli export wrote as ONNX. It needs numpy, Pillow and onnxruntime.\n"
        "The files are those of dearli predict, and predictions.json lists them.\n"
        "The same command goes on after an interruption.",
        epilog=_EXAMPLE,
    )
    parser = result.add_argument
    parser("model", type=Path, metavar="MODEL.onnx", help="exported model")
    parser("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser(
        "--vocabulary", type=Path, metavar="FILE", help="classes, for a model that was exported with an open vocabulary"
    )
    parser(
        "--files",
        default="panoptic,semantic,overlay",
        metavar="KINDS",
        help="files to write of each image, with commas: panoptic (always), semantic, overlay, overlay.jpg, confidence; "
        "default: %(default)s",
    )
    parser("--overwrite", action="store_true", help="replace predictions of another model or of other images in --out")
    parser("--threads", type=_count, default=0, metavar="N", help="threads of the network; default: one for each core")
    parser(
        "--workers", type=_count, metavar="N", help="threads that read images, and that write; default: by the cores"
    )
    parser("--provider", choices=list(PROVIDERS), default="cpu", help="where the network runs; default: %(default)s")
    return result


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def predict_files(predictor: OnnxPredictor, folder: PredictionFolder, workers: int | None = None) -> Summary:
    """Predicts and writes the images of a folder that are missing there; those that cannot be read are reported and skipped.

    Args:
        predictor: the model.
        folder: the place of the files.
        workers: number of threads that read, and that write; None = by the number of cores.
    """
    check_ids(predictor.taxonomy)
    semantic = per_pixel(folder.kinds)

    def read(task: Task) -> _Image:
        return _Image(read_image(task.path))

    def find(images: Sequence[_Image]) -> list[Maps]:
        return [predictor.maps(image.pixels, semantic) for image in images]

    write = WriteTask(folder.out, folder.staging(_ALL), tuple(folder.kinds), predictor.taxonomy)
    chunks = chunks_of(tasks_of(folder.inputs), 1)
    return folder.fill(Work(read, find, write), chunks, predictor.taxonomy, _ALL, workers)


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status."""
    options = parser().parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    kinds = chosen_kinds([word.strip() for word in options.files.split(",") if word.strip()])
    inputs = find_inputs(options.images)
    predictor = OnnxPredictor(options.model, options.vocabulary, options.threads, options.provider)
    run = {
        "weights": file_digest(options.model),
        "classes": file_digest(options.vocabulary) if options.vocabulary else "",
    }
    folder = PredictionFolder(options.out, inputs, run, options.overwrite, kinds)
    done = predict_files(predictor, folder, options.workers)
    print(json.dumps({"predicted": done.predicted, "skipped": len(done.skipped), "out": str(options.out)}))
    return 0 if done.predicted else 1


if __name__ == "__main__":
    sys.exit(report_errors(main))
