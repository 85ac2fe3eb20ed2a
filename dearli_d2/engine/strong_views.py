"""From unlabelled samples and their pseudo-labels to what the student trains on: strong views, mixed with their labels."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from ..data.mappers import passed_on
from ..modeling.labeler import Labels
from ..modeling.segmenter import Segmenter
from .classmix import ClassMix
from .cutmix import CutMix, mix_images, mix_targets


class StrongViews:
    """Makes the training samples of the unlabelled stream: mixes the strong views and the pseudo-labels alike.

    Args:
        mix: None leaves it out.
        thing_ids: classes whose segments it keeps apart.
        device: of the results.
    """

    def __init__(self, mix: CutMix | ClassMix | None, thing_ids: Collection[int], device: torch.device | str) -> None:
        self.mix, self.thing_ids, self.device = mix, thing_ids, device

    def __call__(self, samples: list[dict[str, Any]], labels: Labels, rng: np.random.Generator) -> list[dict[str, Any]]:
        """Makes the samples of one batch.

        Args:
            samples: of `UnlabeledTrainMapper`, all of one size.
            labels: of their weak views, see `Labeler.label`.
            rng: draws partners and boxes.

        Returns:
            Samples for the student, those of the second strong view, if there is one, after all of the first: "image"
            (3, S, S) uint8, the mixed strong view; "targets" and other labels of it; "inside", no padding; what is
            `passed_on`, where a mixed image has the captions of both; and for pictures "weak", the weak view, and
            "pseudo_label", what was seen there.
        """
        views = torch.stack([x["strong"] for x in samples], 1).to(self.device, non_blocking=True)
        return [sample for images in views for sample in self._of_view(samples, images, labels, rng)]

    def _of_view(
        self, samples: list[dict[str, Any]], images: torch.Tensor, labels: Labels, rng: np.random.Generator
    ) -> list[dict[str, Any]]:
        targets, captions = labels, [x.get("caption") for x in samples]
        inside = torch.stack([x["inside"] for x in samples]).to(self.device, non_blocking=True)
        if self.mix is not None:
            plan = self.mix.plan_for(labels["targets"], rng)
            images, inside = mix_images(images, plan), mix_images(inside[:, None], plan)[:, 0]
            targets = {name: mix_targets(part, plan, self.thing_ids) for name, part in labels.items()}
            if captions[0] is not None:  # a mixed image is described by both
                pairs = enumerate(zip(captions, plan.partner, strict=True))
                captions = [(own, captions[other]) if plan.changes(i) else own for i, (own, other) in pairs]
        return [
            {
                **passed_on(sample),
                **({} if captions[i] is None else {"caption": captions[i]}),
                **{name: part[i] for name, part in targets.items()},
                "image": images[i],
                "inside": inside[i],
                "weak": sample["image"],
                "pseudo_label": labels["targets"][i],
            }
            for i, sample in enumerate(samples)
        ]


def build_strong_views(cfg: CfgNode, student: Segmenter) -> StrongViews:
    """The strong views of a config, on the device of the student."""
    ssl = cfg.SSL
    mix: CutMix | ClassMix | None = None
    if ssl.CUTMIX:
        by_class = ssl.MIX == "classmix"
        mix = ClassMix(ssl.CUTMIX) if by_class else CutMix(ssl.CUTMIX, ssl.CUTMIX_AREA, ssl.CUTMIX_ASPECT)
    things: Collection[int] = ()
    if student.taxonomy is not None and cfg.INPUT.TARGETS == "panoptic":
        things = student.taxonomy.thing_ids
    return StrongViews(mix, things, student.device)
