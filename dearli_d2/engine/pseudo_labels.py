"""From unlabelled samples to what the student trains on: the teacher's labels of weak views, CutMix, strong views."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from ..data.mappers import passed_on
from .classmix import ClassMix
from .cutmix import CutMix, mix_images, mix_targets
from .teacher import EMATeacher


class PseudoLabeler:
    """Args:
    teacher: labels each unlabelled image once.
    mix: None leaves it out.
    thing_ids: classes whose segments it keeps apart.
    device: of the results.
    """

    def __init__(
        self,
        teacher: EMATeacher,
        mix: CutMix | ClassMix | None,
        thing_ids: Collection[int],
        device: torch.device | str,
    ) -> None:
        self.teacher, self.mix, self.thing_ids, self.device = teacher, mix, thing_ids, device

    def __call__(self, samples: list[dict], rng: np.random.Generator) -> list[dict]:
        """Args:
            samples: of `UnlabeledTrainMapper`, all of one size. rng: draws partners and boxes.

        Returns:
            Samples for the student: "image" (3, S, S) uint8, the mixed strong view; "targets"; what is `passed_on`, where
            a mixed image has the captions of both; and for pictures "weak", the weak view, and "pseudo_label", what the teacher saw there.
        """
        labels = self.teacher.pseudo_label(samples)
        targets, captions = labels, [x.get("caption") for x in samples]
        images = torch.stack([x["strong"] for x in samples]).to(self.device, non_blocking=True)
        if self.mix is not None:
            plan = self.mix.plan_for(labels, rng)
            images, targets = mix_images(images, plan), mix_targets(targets, plan, self.thing_ids)
            if captions[0] is not None:  # a mixed image is described by both
                pairs = enumerate(zip(captions, plan.partner, strict=True))
                captions = [(own, captions[other]) if plan.changes(i) else own for i, (own, other) in pairs]
        return [
            {
                **passed_on(sample),
                **({} if caption is None else {"caption": caption}),
                "image": image,
                "targets": target,
                "weak": sample["image"],
                "pseudo_label": label,
            }
            for image, target, label, caption, sample in zip(images, targets, labels, captions, samples, strict=True)
        ]
