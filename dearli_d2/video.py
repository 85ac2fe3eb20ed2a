"""Videos: the frames of a file, segments that keep their ids and colours from frame to frame, and a video of them.

Segments are matched to those of the previous frame by class and overlap. This is no tracking model: a thing that is hidden for a
frame, or that moves by more than its own size, gets a new id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from .data.taxonomy import Taxonomy
from .errors import DatasetError, UnreadableImageError
from .prediction_files import Maps

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
_SAME = 0.3  # IoU from which on segments of neighbouring frames are one
_FPS = 25.0  # of a file that does not say it


class Video:
    """A file of frames.

    Args:
        path: the file.

    Raises:
        UnreadableImageError: a missing or damaged file, or a codec that OpenCV does not have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        capture = cv2.VideoCapture(str(path))
        opened = path.is_file() and capture.isOpened()
        self.fps = float(capture.get(cv2.CAP_PROP_FPS)) or _FPS
        self.count = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)  # as the file says, perhaps 0
        capture.release()
        if not opened:
            raise UnreadableImageError(
                f"{path} cannot be read as a video; convert it to H.264 in an .mp4 file, or extract its frames to a folder"
            )

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 RGB frames, turned as the file says."""
        capture = cv2.VideoCapture(str(self.path))
        try:
            number = 0
            while True:
                good, frame = capture.read()
                if not good:
                    break
                number += 1
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()
        if not number:
            raise UnreadableImageError(f"{self.path} has no frame that can be decoded")


class VideoWriter:
    """Writes frames to an .mp4 file (MPEG-4), which is absent until it is complete.

    Args:
        path: the file.
        fps: frames a second.

    Raises:
        DatasetError: the file cannot be written.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
        self._writer: Any = None
        self._size = (0, 0)

    def add(self, frame: np.ndarray) -> None:
        """Appends an (H, W, 3) uint8 RGB frame; all get the size of the first."""
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # the codec needs even sides
            self._size = frame.shape[1] // 2 * 2, frame.shape[0] // 2 * 2
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._temporary), code, self.fps, self._size)
            if not self._writer.isOpened():
                raise DatasetError(f"{self.path} cannot be written as a video of {self._size[0]} x {self._size[1]}")
        self._writer.write(cv2.cvtColor(frame[: self._size[1], : self._size[0]], cv2.COLOR_RGB2BGR))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if kind is None and self._temporary.exists():
            self._temporary.replace(self.path)
        self._temporary.unlink(missing_ok=True)


class Linker:
    """Gives the segments of each frame the ids of the previous frame, where class and place agree.

    Args:
        taxonomy: of the predictions. Stuff of one class keeps its id for the whole video.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.things = taxonomy.thing_ids
        self._last_id = 0
        self._stuff: dict[int, int] = {}
        self._shades: dict[int, int] = {}
        self._number: dict[int, int] = {}  # the shade of each id
        self._before: tuple[np.ndarray, dict[int, int]] | None = None  # panoptic map, and class of each id

    def __call__(self, maps: Maps) -> Maps:
        """The maps of the next frame with lasting ids. "shade" of a segment tells instances of a class apart."""
        classes = {s["id"]: s["category_id"] for s in maps.segments}
        known = self._matches(maps.panoptic, classes)
        table = np.zeros(max(int(maps.panoptic.max(initial=0)), *classes, 0) + 1, np.int32)
        segments = []
        for segment in maps.segments:
            category, old = segment["category_id"], known.get(segment["id"])
            if category not in self.things:
                old = self._stuff.get(category)
            lasting = old or self._new(category)
            table[segment["id"]] = lasting
            segments.append({**segment, "id": lasting, "shade": self._number[lasting]})
        panoptic = table.take(maps.panoptic)
        self._before = panoptic, {s["id"]: s["category_id"] for s in segments}
        return Maps(panoptic, segments, maps.semantic, maps.confidence)

    def go_on(self, classes: Mapping[int, int], panoptic: np.ndarray, present: Sequence[int]) -> None:
        """Continues the work of a linker that has seen the earlier frames.

        Args:
            classes: class of each lasting id so far.
            panoptic: (H, W) lasting ids of the last frame.
            present: the ids in the last frame.
        """
        for lasting in sorted(classes):
            self._last_id = lasting - 1
            self._new(classes[lasting])
        self._before = panoptic, {lasting: classes[lasting] for lasting in present}

    def _new(self, category: int) -> int:
        self._last_id += 1
        if category in self.things:
            self._number[self._last_id] = self._shades.get(category, 0)
            self._shades[category] = self._number[self._last_id] + 1
        else:
            self._stuff[category], self._number[self._last_id] = self._last_id, 0
        return self._last_id

    def _matches(self, panoptic: np.ndarray, classes: dict[int, int]) -> dict[int, int]:
        """The earlier id of each thing that has one; the largest IoU goes first, and no id is given twice."""
        if self._before is None or self._before[0].shape != panoptic.shape:
            return {}
        before, old_classes = self._before
        base = int(panoptic.max(initial=0)) + 1
        pairs, both = np.unique(before.astype(np.int64) * base + panoptic, return_counts=True)
        first, second = np.bincount(before.ravel()), np.bincount(panoptic.ravel())
        candidates = []
        for pair, count in zip(pairs.tolist(), both.tolist(), strict=True):
            old, new = divmod(pair, base)
            iou = count / (first[old] + second[new] - count)
            if old and new and classes.get(new) == old_classes.get(old) and iou >= _SAME:
                candidates.append((float(iou), old, new))
        found: dict[int, int] = {}
        for _, old, new in sorted(candidates, reverse=True):
            if new not in found and old not in found.values():
                found[new] = old
        return found


def predict_video(
    find: Callable[[np.ndarray], Maps],
    video: Video,
    taxonomy: Taxonomy,
    write: Callable[[int, np.ndarray, Maps], object],
    link: Linker | None = None,
    done: int = 0,
) -> int:
    """Predicts the frames one after another.

    Args:
        find: the prediction of an image.
        video: the frames.
        taxonomy: of the predictions.
        write: gets the number of a frame from 1 on, the frame, and its maps with lasting ids.
        link: gives lasting ids; None = a new one.
        done: number of frames at the start that are left out.

    Returns:
        The number of frames.
    """
    from tqdm import tqdm

    link, number = link or Linker(taxonomy), 0
    for number, frame in enumerate(tqdm(video, total=video.count or None, unit="frame"), start=1):
        if number > done:
            write(number, frame, link(find(frame)))
    return number
