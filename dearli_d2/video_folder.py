"""The folder of a video's frames. After an interruption the same command continues after the last complete frame."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .data.panoptic_png import read_panoptic, segment_ids
from .data.taxonomy import Taxonomy
from .files import parse_json, write_json
from .prediction_files import ENDINGS, Maps, write_files
from .video import Linker

_LINES = "frames.jsonl"
_ABOUT = ".video.json"


class FrameFolder:
    """The files of each frame, `000001_panoptic.png` and so on, and `frames.jsonl` with a line for each frame. It is a context.

    Args:
        out: the folder; made if it is missing.
        kinds: the files of a frame, see `prediction_files.ENDINGS`; "panoptic" among them.
        taxonomy: of the predictions.
        run: everything that the predictions depend on. Frames of the same run and kinds are kept, others are replaced.

    Attributes:
        done: number of frames that are complete.
    """

    def __init__(self, out: Path, kinds: Sequence[str], taxonomy: Taxonomy, run: Mapping[str, Any]) -> None:
        self.out, self.kinds, self.taxonomy = out, kinds, taxonomy
        # as the file gives it back: lists, no tuples
        self._about = json.loads(json.dumps({"kinds": list(kinds), **run}))
        self._classes: dict[int, int] = {}  # of each id
        self._last: list[int] = []  # ids of the last frame
        self.done = 0

    def __enter__(self) -> FrameFolder:
        self.out.mkdir(parents=True, exist_ok=True)
        path, about = self.out / _LINES, self.out / _ABOUT
        end = self._read(path) if self._same(about) else 0
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(end)
        self._file.seek(end)
        write_json(about, self._about)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _same(self, about: Path) -> bool:
        try:
            return bool(parse_json(about.read_text(encoding="utf-8")) == self._about)
        except (OSError, ValueError):
            return False

    def _read(self, path: Path) -> int:
        """Counts the complete frames. Returns the byte at which the line of the last one ends."""
        end = 0
        if path.is_file():
            with path.open("rb") as file:
                for line in file:
                    try:
                        record = parse_json(line.decode()) if line.endswith(b"\n") else {}
                        segments = {
                            s["id"]: self.taxonomy.dataset_ids.index(s["category_id"]) for s in record["segments_info"]
                        }
                        complete = record["frame"] == self.done + 1
                    except (ValueError, KeyError, TypeError):
                        break
                    if not complete or not all(self._path(self.done + 1, kind).is_file() for kind in self.kinds):
                        break
                    self.done, self._last = self.done + 1, list(segments)
                    self._classes |= segments
                    end += len(line)
        return end

    def _path(self, number: int, kind: str) -> Path:
        return self.out / f"{number:06}{ENDINGS[kind]}"

    def linker(self) -> Linker:
        """The linker for the missing frames. It knows the ids of the complete ones."""
        linker = Linker(self.taxonomy)
        if self.done:
            ids = segment_ids(read_panoptic(str(self._path(self.done, "panoptic")))).astype(np.int32)
            linker.go_on(self._classes, ids, self._last)
        return linker

    def write(self, number: int, frame: np.ndarray, maps: Maps) -> None:
        """Writes the files of a frame, then its line.

        Args:
            number: of the frame, from 1 on.
            frame: (H, W, 3) uint8 RGB.
            maps: with lasting ids.
        """
        record = write_files(self.out, f"{number:06}", self.kinds, frame, maps, self.taxonomy)
        self._file.write(json.dumps({"frame": number, **record}).encode() + b"\n")
        self._file.flush()
