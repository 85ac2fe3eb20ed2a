"""Read-out of masks and classes: semantic, panoptic, instance. Batched, without a host transfer per segment."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F


def semantic_inference(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    """Class scores per pixel: sum over queries of p_q(c) * sigmoid(mask_q), no-object left out (MaskFormer, Sec. 3.4).

    Args:
        class_logits: (B, Q, K + 1), logits or log-probabilities.
        mask_logits: (B, Q, H, W).

    Returns:
        (B, K, H, W) fp32, not normalised.
    """
    probability = class_logits.float().softmax(-1)[..., :-1]
    with torch.autocast(mask_logits.device.type, enabled=False):  # near ties decide pixels: fp32
        return torch.einsum("bqk,bqhw->bkhw", probability, mask_logits.float().sigmoid())


def panoptic_inference(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    thing_ids: Collection[int],
    object_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> list[tuple[torch.Tensor, list[dict]]]:
    """Segments that do not overlap (MaskFormer, Sec. 3.4).

    Queries whose best class is an object with a score above `object_threshold` compete for each pixel by score times
    mask probability. A query keeps the pixels it wins where its mask is at least 0.5; it is dropped when it wins less
    than `overlap_threshold` of its own mask. Stuff segments of one class are one segment.

    Args:
        class_logits: (B, Q, K + 1), logits or log-probabilities.
        mask_logits: (B, Q, H, W).
        thing_ids: contiguous ids of the thing classes.

    Returns:
        Per image the (H, W) int32 map of segment ids (0 = none) and a list of
        {"id", "category_id" (contiguous), "isthing", "score"}, ids 1, 2, ... in the order of the queries.
    """
    regions = panoptic_regions(class_logits, mask_logits, thing_ids, object_threshold, overlap_threshold)
    table = torch.stack([regions.segment_id.double(), regions.label.double(), regions.score.double()], -1).cpu()
    things, results = set(thing_ids), []
    for image, rows in enumerate(table.tolist()):
        segments: dict[int, dict] = {}
        for segment_id, label, score in rows:
            if segment_id and int(segment_id) not in segments:
                segments[int(segment_id)] = {
                    "id": int(segment_id),
                    "category_id": int(label),
                    "isthing": int(label) in things,
                    "score": score,
                }
        results.append((regions.panoptic[image], list(segments.values())))
    return results


def candidates(class_logits: torch.Tensor, object_threshold: float = 0.0) -> torch.Tensor | slice:
    """The queries that can become a segment, at least one, or all.

    Few queries are objects, so their masks alone are enlarged on a CPU. On a GPU the host would have to wait to know them.

    Args:
        class_logits: (1, Q, K + 1).
        object_threshold: of the score.
    """
    if class_logits.device.type != "cpu":
        return slice(None)
    score, label = class_logits[0].float().softmax(-1).max(-1)
    kept = ((label < class_logits.shape[-1] - 1) & (score > object_threshold)).nonzero()[:, 0]
    return kept if len(kept) else slice(0, 1)


def segments_of(regions: Sequence[PanopticRegions], min_area: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Labels (N,) and masks (N, H, W) bool of each image's segments that have pixels, and at least `min_area` of them.

    Args:
        regions: of the images. All segment tables reach the host in one transfer, and the result the device in another.
    """
    tables = []
    for region in regions:
        batch, queries = region.segment_id.shape
        columns = region.panoptic.transpose(1, 2).long()
        # counted for each column first: on a GPU neighbouring pixels of one segment would wait for one another
        area = columns.new_zeros(batch, columns.shape[1], queries + 1)
        area = area.scatter_add_(2, columns, columns.new_ones(()).expand_as(columns)).sum(1)
        label = torch.zeros_like(area).scatter_(1, region.segment_id, region.label)
        tables.append(torch.stack([area, label], 1))
    width = max(table.shape[-1] for table in tables)
    kept = []
    for area, label in torch.cat([F.pad(table, (0, width - table.shape[-1])) for table in tables]).cpu():
        area[0] = 0  # no segment
        ids = (area >= max(min_area, 1)).nonzero()[:, 0]
        kept.append(torch.stack([ids, label[ids]]))
    device = regions[0].panoptic.device
    found = torch.cat(kept, 1).to(device, non_blocking=True).split([part.shape[1] for part in kept], 1)
    maps = [panoptic for region in regions for panoptic in region.panoptic]
    return [(label, panoptic == ids.int()[:, None, None]) for panoptic, (ids, label) in zip(maps, found, strict=True)]


# pixels that compete at a time, at least, and elements of all masks
_CPU_BLOCK, _CPU_ELEMENTS = 4096, 2**18


@dataclass
class PanopticRegions:
    """Panoptic segments of a batch, on the device.

    `panoptic` is (B, H, W) int32 segment ids, 0 = none. Each query has a `segment_id` (B, Q) int64 (0 = dropped, equal ids =
    merged stuff), a `label` (B, Q) int64 and a `score` (B, Q) fp32.
    """

    panoptic: torch.Tensor
    segment_id: torch.Tensor
    label: torch.Tensor
    score: torch.Tensor


def panoptic_regions(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    thing_ids: Collection[int],
    object_threshold: float,
    overlap_threshold: float,
    full: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
) -> PanopticRegions:
    """The tensor part of `panoptic_inference`; nothing here waits for the device.

    Args:
        class_logits, mask_logits, thing_ids, object_threshold, overlap_threshold: see `panoptic_inference`.
        full: height and width to which the masks are enlarged first; None = their own.
        size: height and width of the upper left part that is read out; None = all.
    """
    batch, queries, *own_size = mask_logits.shape
    device, full = mask_logits.device, full or (own_size[0], own_size[1])
    height, width = size or full
    score, label = class_logits.float().softmax(-1).max(-1)
    keep = (label != class_logits.shape[-1] - 1) & (score > object_threshold)

    if enlarges_in_place(device):
        from .competition_triton import compete

        place, counts, own = compete(mask_logits, torch.where(keep, score, -1.0), full, (height, width))
    else:
        pixels = resize_logits(mask_logits.float(), full)[..., :height, :width].flatten(2)
        winner = torch.empty(batch, height * width, dtype=torch.int64, device=device)
        own = torch.zeros(batch, queries, dtype=torch.int64, device=device)
        for image in range(batch):
            _compete(pixels[image], score[image], keep[image], winner[image], own[image])
        place = 2 * winner + (pixels.gather(1, winner[:, None])[:, 0] >= 0)  # sigmoid >= 0.5
        counts = torch.zeros(batch, 2 * queries, dtype=torch.int64, device=device)
        counts.scatter_add_(1, place, torch.ones_like(place))
    counts = counts.view(batch, queries, 2)
    won, kept_pixels = counts.sum(-1), counts[..., 1]
    good = keep & (won > 0) & (own > 0) & (kept_pixels > 0) & (won >= overlap_threshold * own)

    is_thing = torch.zeros(class_logits.shape[-1], dtype=torch.bool)
    is_thing[list(thing_ids)] = True
    stuff = good & ~is_thing.to(device, non_blocking=True)[label]
    same = (label[:, :, None] == label[:, None]) & stuff[:, :, None] & stuff[:, None]
    order = torch.arange(queries, device=device)
    first = torch.where(stuff, same.int().argmax(-1), order)  # stuff joins the first query of its class
    number = (good & (first == order)).long().cumsum(-1)
    segment_id = torch.where(good, number.gather(-1, first), 0)
    ids = F.pad(segment_id.int()[..., None], (1, 0)).flatten(1)  # 0 outside of the mask
    panoptic = torch.stack([own_ids.index_select(0, own_place) for own_ids, own_place in zip(ids, place, strict=True)])
    return PanopticRegions(panoptic.view(batch, height, width), segment_id, label, score)


@cache
def enlarges_in_place(device: torch.device) -> bool:
    """True if `panoptic_regions` reads out enlarged masks without writing them: on GPUs where Triton runs."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    try:
        from .competition_triton import runs_on
    except ImportError:  # Triton is optional
        return False
    return runs_on(device)


def _compete(
    pixels: torch.Tensor, score: torch.Tensor, keep: torch.Tensor, winner: torch.Tensor, own: torch.Tensor
) -> None:
    """Writes the winning query of each pixel and the size of each mask (sigmoid at least 0.5) of one image.

    Args:
        pixels: (Q, N) mask logits.
        score, keep: (Q,).
        winner: (N,) int64, written to.
        own: (Q,) int64, written to.

    On a CPU only the kept queries are read, in blocks of pixels that stay in the cache. On a GPU the host would have to wait
    for the device to know them, so all queries compete, and a dropped one with -1, below every kept one.
    """
    if pixels.device.type == "cpu":
        rows = keep.nonzero()[:, 0]
        if not len(rows):
            winner.zero_()
            return
        block = max(_CPU_BLOCK, _CPU_ELEMENTS // len(rows))
        strength = score[rows, None]
    else:
        rows, block = torch.arange(len(score), device=score.device), pixels.shape[1]
        strength = torch.where(keep, score, -1.0)[:, None]
    for part, target in zip(pixels.split(block, 1), winner.split(block), strict=True):
        part = part if len(rows) == len(part) else part[rows]
        own[rows] += (part >= 0).sum(1)
        _, first = first_of_largest(part.sigmoid().mul_(strength))
        torch.index_select(rows, 0, first.int(), out=target)


def first_of_largest(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest value of each column, and the first row that has it. `max(0)` takes many times longer on a CPU.

    Args:
        values: (R, ...), at most 32767 rows.

    Returns:
        (...) values, and (...) int16.
    """
    largest = values.amax(0)
    backwards = torch.arange(len(values), 0, -1, dtype=torch.int16, device=values.device)
    marks = (values >= largest) * backwards.view(-1, *[1] * largest.dim())
    return largest, len(values) - marks.amax(0).clamp_(min=1)  # a column with NaN gets the last row


@dataclass
class InstancePrediction:
    """`labels` (N,) int64, `scores` (N,) fp32, `masks` (N, H, W) bool, best first."""

    labels: torch.Tensor
    scores: torch.Tensor
    masks: torch.Tensor


def instance_inference(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, thing_ids: Collection[int], topk: int = 100
) -> list[InstancePrediction]:
    """The `topk` (query, thing class) pairs by class score times mean mask probability inside the mask.

    Args:
        class_logits: (B, Q, K + 1).
        mask_logits: (B, Q, H, W).
        thing_ids: contiguous ids of the thing classes.
        topk: largest number of pairs of an image.
    """
    things = torch.tensor(sorted(thing_ids), dtype=torch.int64, device=class_logits.device)
    scores = class_logits.float().softmax(-1)[..., things].flatten(1)
    scores, order = scores.topk(min(topk, scores.shape[1]), dim=1)
    query, label = order // max(len(things), 1), things[order % max(len(things), 1)]
    results = []
    for logits, q, classes, class_scores in zip(mask_logits, query, label, scores, strict=True):
        chosen = logits[q].float()
        masks = chosen > 0
        quality = (chosen.sigmoid() * masks).sum((1, 2)) / masks.sum((1, 2)).clamp(min=1)
        final, rank = (class_scores * quality).sort(descending=True)
        results.append(InstancePrediction(classes[rank], final, masks[rank]))
    return results


def resize_logits(mask_logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(B, Q, h, w) to (B, Q, *size), bilinear."""
    if mask_logits.shape[-2:] == tuple(size):
        return mask_logits
    return F.interpolate(mask_logits, size=tuple(size), mode="bilinear", align_corners=False)
