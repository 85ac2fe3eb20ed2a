"""From the outputs of an exported graph to labels, as `metadata.ReadOut` says, with numpy alone.

Maps of all queries, and scores of all classes, exist for a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..prediction_files import Maps
from .metadata import CLASS_LOGITS, MASK_LOGITS, PIXEL_LOGITS, ReadOut
from .resizing import Resize, Size, used

_BLOCK = 2**20  # elements of a block, which stays in the cache

# Scores (K, rows, W) of rows `top` to `bottom`
Scores = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Frame:
    """Sizes (height, width) of one image on its way through the graph.

    Attributes:
        input: of the graph's input.
        content: of the image, or of a window of it, inside of the input, or before a resize to that.
        fitted: whether the content was resized to the input, not padded.
    """

    input: Size
    content: Size
    fitted: bool


def labels_of(
    outputs: dict[str, np.ndarray],
    frame: Frame,
    read_out: ReadOut,
    things: Collection[int],
    size: Size,
    semantic: bool = True,
) -> Maps:
    """The labels of one image that went through the graph at once.

    Args:
        outputs: of the graph, of one image, without the axis of the batch.
        frame: of the image.
        read_out: what to make of the outputs.
        things: indices of the classes whose segments are objects.
        size: of the labels.
        semantic: with the class of each pixel and its probability; without them a model with objects reads out less.
    """
    if read_out.kind == "pixels":
        return class_labels(pixel_scores(outputs[PIXEL_LOGITS], frame, size), size, len(outputs[PIXEL_LOGITS]))
    masks, classes = _masks(outputs, frame, size), QueryClasses.of(outputs[CLASS_LOGITS], read_out)
    if not read_out.panoptic:
        return class_labels(lambda top, bottom: classes.scores(masks(top, bottom)), size, masks.count)
    panoptic = Panoptic(outputs[CLASS_LOGITS], read_out, size)
    best = Semantic(size)
    for top, bottom in blocks(size, masks.count):
        part = masks(top, bottom)
        panoptic.add(top, part)
        if semantic:
            best.add(top, classes.scores(part))
    found = panoptic.segments(set(things))
    return Maps(*found, best.best, best.confidence) if semantic else Maps(*found)


def scores_of(outputs: dict[str, np.ndarray], frame: Frame, read_out: ReadOut) -> np.ndarray:
    """(K, *frame.content) scores of one window. `outputs` as for `labels_of`."""
    if read_out.kind == "pixels":
        return pixel_scores(outputs[PIXEL_LOGITS], frame, frame.content)(0, frame.content[0])
    masks, classes = _masks(outputs, frame, frame.content), QueryClasses.of(outputs[CLASS_LOGITS], read_out)
    parts = [classes.scores(masks(top, bottom)) for top, bottom in blocks(frame.content, masks.count)]
    return np.concatenate(parts, 1)


def class_labels(scores: Scores, size: Size, channels: int) -> Maps:
    """Maps of a model without objects: each class is a segment.

    Args:
        scores: of the classes.
        size: of the labels.
        channels: maps that `scores` handles at a time, for the size of a block.
    """
    semantic = Semantic(size)
    for top, bottom in blocks(size, channels):
        semantic.add(top, scores(top, bottom))
    best = semantic.best
    areas, sums = np.bincount(best.ravel()), np.bincount(best.ravel(), semantic.score.ravel())
    segments = [
        {"id": int(c) + 1, "category_id": int(c), "isthing": False, "score": float(sums[c] / areas[c])}
        for c in np.flatnonzero(areas)
    ]
    return Maps((best + 1).astype(np.int32), segments, best, semantic.confidence)


def resized_scores(scores: np.ndarray, size: Size) -> Scores:
    """Scores (K, h, w) at another size."""
    enlarge = Resize.chain(scores.shape[1:], (size, size))
    return lambda top, bottom: enlarge(scores, top, bottom)


def blocks(size: Size, channels: int) -> list[tuple[int, int]]:
    """Blocks of rows, top and bottom, of `channels` maps of a size."""
    rows = max(1, _BLOCK // (channels * size[1]))
    return [(top, min(top + rows, size[0])) for top in range(0, size[0], rows)]


# ---------------------------------------------------------------------------------------------- masks and pixels


@dataclass(frozen=True)
class _Masks:
    """(Q, h, w) logits that are read at another size, rows `top` to `bottom` at a time."""

    logits: np.ndarray
    enlarge: Resize

    @property
    def count(self) -> int:
        return len(self.logits)

    def __call__(self, top: int, bottom: int) -> np.ndarray:
        return self.enlarge(self.logits, top, bottom)


def _masks(outputs: dict[str, np.ndarray], frame: Frame, size: Size) -> _Masks:
    logits = outputs[MASK_LOGITS].astype(np.float32, copy=False)
    return _Masks(logits, Resize.chain(logits.shape[1:], (frame.input, frame.content), (size, size)))


def pixel_scores(logits: np.ndarray, frame: Frame, size: Size) -> Scores:
    """Class probabilities at `size`, of (K, h, w) logits."""
    logits = logits.astype(np.float32, copy=False)
    full = frame.content if frame.fitted else frame.input
    inside, enlarge = Resize.chain(logits.shape[1:], (full, frame.content)), Resize.chain(frame.content, (size, size))

    def scores(top: int, bottom: int) -> np.ndarray:
        if size == frame.content:
            return softmax(inside(logits, top, bottom), 0)
        first, end = used(enlarge.rows[top:bottom])
        part = Resize(enlarge.rows[top:bottom, first:end], enlarge.columns, enlarge.weights)
        return part(softmax(inside(logits, first, end), 0))

    return scores


@dataclass(frozen=True)
class QueryClasses:
    """Opinions of the queries on the classes.

    Attributes:
        probability: (Q, K), the probabilities of its classes; None where only the best one counts.
        label: (Q,) best class, K = no object.
        classes: K.
        penalty: see `ReadOut`.
    """

    probability: np.ndarray | None
    label: np.ndarray
    classes: int
    penalty: Sequence[float]

    @staticmethod
    def of(logits: np.ndarray, read_out: ReadOut) -> QueryClasses:
        """Reads (Q, K + 1) logits, or (Q, K) of independent classes."""
        logits = logits.astype(np.float32, copy=False)
        independent = read_out.activation == "sigmoid"
        probability = sigmoid(logits) if independent else softmax(logits, 1)[:, :-1]
        label, classes = logits.argmax(1), probability.shape[1]
        return QueryClasses(None if read_out.semantic == "argmax" else probability, label, classes, read_out.penalty)

    def scores(self, masks: np.ndarray) -> np.ndarray:
        """(Q, h, w) mask logits to (K, h, w) class scores."""
        response = sigmoid(masks)
        if self.probability is not None:
            flat = self.probability.T @ response.reshape(len(response), -1)
            scores = flat.reshape(self.classes, *response.shape[1:])
        else:
            scores = np.zeros((self.classes, *response.shape[1:]), np.float32)
            for query, label in enumerate(self.label):
                if label < self.classes:
                    np.maximum(scores[label], response[query], out=scores[label])
        if len(self.penalty):
            scores -= np.array(self.penalty, np.float32)[:, None, None]
        return scores


# ---------------------------------------------------------------------------------------------- labels


class Semantic:
    """The best class of each pixel, collected from blocks of rows."""

    def __init__(self, size: Size) -> None:
        self.best = np.zeros(size, np.int64)
        self.score = np.zeros(size, np.float32)
        self.confidence = np.zeros(size, np.float32)

    def add(self, top: int, scores: np.ndarray) -> None:
        """Adds (K, rows, W) scores of the rows from `top` on. Of equal scores the first class counts."""
        rows = slice(top, top + scores.shape[1])
        best, score = first_largest(scores)
        self.best[rows], self.score[rows] = best, score
        self.confidence[rows] = score / np.maximum(scores.sum(0), 1)


class Panoptic:
    """Segments that do not overlap: `modeling.mask2former.inference.panoptic_inference` in blocks of rows.

    Args:
        class_logits: (Q, K + 1).
        read_out: has the thresholds.
        size: of the labels.
    """

    def __init__(self, class_logits: np.ndarray, read_out: ReadOut, size: Size) -> None:
        probability = softmax(class_logits.astype(np.float32, copy=False), 1)
        label, score = probability.argmax(1), probability.max(1)
        self.queries = np.flatnonzero((label < probability.shape[1] - 1) & (score > read_out.object_threshold))
        self.label, self.score = label[self.queries], score[self.queries]
        self.overlap = np.float32(read_out.overlap_threshold)
        self.winner, self.inside = np.zeros(size, np.int64), np.zeros(size, bool)
        self.own = np.zeros(len(self.queries), np.int64)

    def add(self, top: int, masks: np.ndarray) -> None:
        """Adds (Q, rows, W) mask logits of the rows from `top` on."""
        if not len(self.queries):
            return
        rows, masks = slice(top, top + masks.shape[1]), masks[self.queries]
        inside = masks >= 0  # sigmoid >= 0.5
        self.own += inside.sum((1, 2))
        winner, _ = first_largest(sigmoid(masks) * self.score[:, None, None])
        self.winner[rows] = winner
        self.inside[rows] = np.take_along_axis(inside, winner[None], 0)[0]

    def segments(self, things: Collection[int]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """(H, W) int32 segment ids, 0 = none, and the segments."""
        count = len(self.queries)
        if not count:
            return np.zeros(self.winner.shape, np.int32), []
        won = np.bincount(self.winner.ravel(), minlength=count)
        left = np.bincount(self.winner[self.inside], minlength=count)
        good = (won > 0) & (self.own > 0) & (left > 0)
        good &= won.astype(np.float32) >= self.overlap * self.own.astype(np.float32)
        ids, stuff = np.zeros(count, np.int32), dict[int, int]()
        segments: list[dict[str, Any]] = []
        for query in np.flatnonzero(good):
            label = int(self.label[query])
            if label not in things and label in stuff:
                ids[query] = stuff[label]
                continue
            ids[query] = stuff[label] = len(segments) + 1
            segments.append(
                {
                    "id": len(segments) + 1,
                    "category_id": label,
                    "isthing": label in things,
                    "score": float(self.score[query]),
                }
            )
        return np.where(self.inside, ids[self.winner], 0).astype(np.int32), segments


def first_largest(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, h, w) to the index of the first of the largest values of each pixel, (h, w) int64, and that value."""
    best, index = values[0].copy(), np.zeros(values.shape[1:], np.int64)
    for number in range(1, len(values)):
        better = values[number] > best
        np.copyto(best, values[number], where=better)
        index[better] = number
    return index, best


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) of float32."""
    with np.errstate(over="ignore"):  # infinity is right
        result = np.exp(-x)
    result += 1
    return np.reciprocal(result, out=result)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """Softmax of float32."""
    result = np.exp(x - x.max(axis, keepdims=True))
    result /= result.sum(axis, keepdims=True)
    return result
