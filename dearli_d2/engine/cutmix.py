"""CutMix (Yun et al. 2019) inside a batch, and the mixing of images and segment targets (DEARLi, Sec. 4)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..structures import Targets
from .classmix import ClassMixPlan
from .partners import draw_partners


@dataclass(frozen=True)
class CutMixPlan:
    """The pastes of a batch: image i gets the pixels of image `partner[i]` inside `boxes[i]`.

    A box is (x0, y0, x1, y1) in pixels, ends excluded. An empty box leaves the image as it is. The plan lies on the host, which
    then needs not wait for the device.
    """

    partner: tuple[int, ...]
    boxes: tuple[tuple[int, int, int, int], ...]

    def inside(self, index: int, height: int, width: int, device: torch.device | str) -> torch.Tensor:
        """(H, W) bool: the box of one image."""
        x0, y0, x1, y1 = self.boxes[index]
        mask = torch.zeros(height, width, dtype=torch.bool, device=device)
        mask[y0:y1, x0:x1] = True
        return mask

    def changes(self, index: int) -> bool:
        """True if anything is pasted into this image."""
        x0, y0, x1, y1 = self.boxes[index]
        return self.partner[index] != index and x1 > x0 and y1 > y0


MixPlan = CutMixPlan | ClassMixPlan


class CutMix:
    """Draws boxes as UniMatch's and DEARLi's code does.

    The area is uniform. Then height / width, uniform, and a corner, uniform in the image, are drawn until the box lies inside. So
    tall boxes are more frequent, and the median of height / width is 1.5.

    Args:
        probability: of a paste, per image.
        area: range of the box's area as a share of the image.
        aspect: range of its height / width.
    """

    def __init__(
        self,
        probability: float = 0.5,
        area: tuple[float, float] = (0.02, 0.4),
        aspect: tuple[float, float] = (0.3, 1 / 0.3),
    ) -> None:
        self.probability, self.area, self.aspect = probability, area, aspect

    def plan(self, count: int, height: int, width: int, rng: np.random.Generator) -> CutMixPlan:
        """Draws partners (see `draw_partners`) and boxes."""
        return CutMixPlan(draw_partners(count, rng), tuple(self._box(height, width, rng) for _ in range(count)))

    def plan_for(self, targets: Sequence[Targets], rng: np.random.Generator) -> CutMixPlan:
        """A plan for the images of these targets."""
        height, width = targets[0].masks.shape[1:]
        return self.plan(len(targets), height, width, rng)

    def _box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        if rng.random() >= self.probability:
            return 0, 0, 0, 0
        area = rng.uniform(*self.area) * height * width
        while True:  # the config's check knows that this ends soon
            aspect = rng.uniform(*self.aspect)
            w, h = max(int(np.sqrt(area / aspect)), 1), max(int(np.sqrt(area * aspect)), 1)
            x, y = int(rng.integers(width)), int(rng.integers(height))
            if x + w <= width and y + h <= height:
                return x, y, x + w, y + h


def mix_images(images: torch.Tensor, plan: MixPlan) -> torch.Tensor:
    """(B, C, H, W) with the partners' pixels where the plan says; the input stays as it is."""
    mixed = images.clone()
    height, width = images.shape[2:]
    for index in filter(plan.changes, range(len(images))):
        inside = plan.inside(index, height, width, images.device)
        mixed[index] = torch.where(inside, images[plan.partner[index]], images[index])
    return mixed


def mix_targets(targets: Sequence[Targets], plan: MixPlan, thing_ids: Collection[int]) -> list[Targets]:
    """The segments that belong to the mixed images: of the partner where the plan pastes it, of the image itself elsewhere.

    Things stay separate, stuff of one class becomes one segment, segments that vanish are dropped. All targets must have
    one size. The one transfer to the host is the list of segments that are left, for the whole batch.
    """
    mixed = [_mix(targets, plan, index, thing_ids) if plan.changes(index) else t for index, t in enumerate(targets)]
    changed = [index for index in range(len(targets)) if plan.changes(index)]
    if not changed:
        return mixed
    kept = torch.cat([mixed[i].masks.flatten(1).any(1) for i in changed]).cpu()
    for index, keep in zip(changed, kept.split([len(mixed[i]) for i in changed]), strict=True):
        if not keep.all():
            rows = keep.nonzero()[:, 0].to(mixed[index].masks.device, non_blocking=True)
            mixed[index] = Targets(mixed[index].labels[rows], mixed[index].masks[rows], mixed[index].valid)
    return mixed


def _mix(targets: Sequence[Targets], plan: MixPlan, index: int, thing_ids: Collection[int]) -> Targets:
    """Segments of one mixed image; one that vanished has an empty mask."""
    own, other = targets[index], targets[plan.partner[index]]
    height, width = own.masks.shape[1:]
    device = own.masks.device
    inside = plan.inside(index, height, width, device)
    labels = torch.cat([own.labels, other.labels])
    masks = torch.cat([own.masks & ~inside, other.masks & inside])
    things = torch.tensor(sorted(thing_ids), dtype=torch.int64).to(device, non_blocking=True)
    stuff = ~torch.isin(labels, things)
    same = (labels[:, None] == labels[None]) & stuff[:, None] & stuff[None]
    order = torch.arange(len(labels), device=device)
    first = torch.where(stuff, same.int().argmax(-1), order) if len(labels) else order
    # a segment joins the first one of its class; its own row stays empty
    joined = torch.zeros(masks.shape, dtype=torch.uint8, device=device).index_add_(0, first, masks.byte())
    valid = None
    if own.valid is not None or other.valid is not None:
        everywhere = torch.ones_like(inside)
        valid = torch.where(
            inside,
            everywhere if other.valid is None else other.valid,
            everywhere if own.valid is None else own.valid,
        )
    return Targets(labels, joined.bool(), valid)
