"""`dearli video`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .base import FILE_OR_FOLDER, command, config_file, overrides

if TYPE_CHECKING:
    import numpy as np

    from ..prediction_files import Maps


@command()
@click.argument("video", type=FILE_OR_FOLDER)
@config_file
@click.option("--weights", metavar="FILE", help="Checkpoint; default: MODEL.WEIGHTS of the config.")
@click.option(
    "--out",
    type=FILE_OR_FOLDER,
    metavar="PLACE",
    required=True,
    help="A file that ends with .mp4: a video of the overlays. Else a folder for the files of each frame.",
)
@click.option("--text", metavar="CLASSES", help="Other classes than those of training; see `dearli predict`.")
@click.option(
    "--files", metavar="KINDS", default="panoptic", show_default=True, help="Files of each frame; see `dearli predict`."
)
@click.option("--amp", type=click.Choice(("bf16", "fp16")), help="Run the network in this precision, by autocast.")
@overrides
def video(
    video: Path,
    config_file: str,
    weights: str | None,
    out: Path,
    text: str | None,
    files: str,
    amp: str | None,
    overrides: tuple[str, ...],
) -> int:
    """Segments the frames of a video.

    Segments keep their id and colour from frame to frame where class and place agree. This is no tracking model: a thing that is
    hidden for a frame, or that moves by more than its own size, gets a new id.

    A folder gets the files of each frame, `000001_panoptic.png` and so on, and `frames.jsonl`: a line for each frame with its
    segments, as `predictions.json` has them. After an interruption the same command continues after the last complete frame.

    Examples:

        dearli video street.mp4 --config-file output/miniworld/m2f_lang/config.yaml --out segmented.mp4
        dearli video street.mp4 --config-file output/miniworld/m2f_lang/config.yaml --out frames --files panoptic,confidence
    """
    from ..config import get_config
    from ..data.images import file_stamp
    from ..errors import ConfigError
    from ..predict import Predictor, identity, load_pixels, precision
    from ..prediction_files import chosen_kinds, per_pixel
    from ..video import Video, VideoWriter, predict_video
    from ..video_folder import FrameFolder
    from ..visualization import overlay

    frames, movie = Video(video), out.suffix.lower() == ".mp4"
    if out.exists() and out.samefile(video):
        raise ConfigError(f"--out {out} is the video itself; choose another file")
    kinds = chosen_kinds(files.split(","))
    predictor = Predictor(get_config(config_file, overrides), weights, text)
    dtype, taxonomy = precision(amp, predictor), predictor.model.known_taxonomy()

    def find(frame: np.ndarray) -> Maps:
        return predictor.maps([load_pixels(predictor.mapper, frame)], not movie and per_pixel(kinds), dtype)[0]

    if movie:
        with VideoWriter(out, frames.fps) as writer:

            def draw(number: int, frame: np.ndarray, maps: Maps) -> None:
                writer.add(overlay(frame, maps.panoptic, maps.segments, taxonomy))

            count = predict_video(find, frames, taxonomy, draw)
    else:
        run = {"video": file_stamp(video), **identity(predictor, text, None, amp)}
        with FrameFolder(out, kinds, taxonomy, run) as folder:
            count = predict_video(find, frames, taxonomy, folder.write, folder.linker(), folder.done)
    print(json.dumps({"frames": count, "out": str(out)}))
    return 0
