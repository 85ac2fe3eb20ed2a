"""From unlabelled samples to what the student trains on: the teacher's labels of weak views, CutMix, strong views."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from .cutmix import CutMix, cutmix_images, cutmix_targets
from .teacher import EMATeacher


class PseudoLabeler:
    """Args:
    teacher: labels each unlabelled image once.
    cutmix: None leaves it out.
    thing_ids: classes whose segments CutMix keeps apart.
    device: of the results.
    """

    def __init__(
        self, teacher: EMATeacher, cutmix: CutMix | None, thing_ids: Collection[int], device: torch.device | str
    ) -> None:
        self.teacher, self.cutmix, self.thing_ids, self.device = teacher, cutmix, thing_ids, device

    def __call__(self, samples: list[dict], rng: np.random.Generator) -> list[dict]:
        """Args:
            samples: of `UnlabeledTrainMapper`, all of one size. rng: draws partners and boxes.

        Returns:
            Samples for the student: "image" (3, S, S) uint8, the mixed strong view; "targets"; "file_name"; and for
            pictures "weak", the weak view, and "pseudo_label", what the teacher saw there.
        """
        labels = self.teacher.pseudo_label(samples)
        targets = labels
        images = torch.stack([x["strong"] for x in samples]).to(self.device, non_blocking=True)
        if self.cutmix is not None:
            plan = self.cutmix.plan(len(samples), *images.shape[-2:], rng)
            images, targets = cutmix_images(images, plan), cutmix_targets(targets, plan, self.thing_ids)
        return [
            {
                "image": image,
                "targets": target,
                "file_name": sample["file_name"],
                "weak": sample["image"],
                "pseudo_label": label,
            }
            for image, target, label, sample in zip(images, targets, labels, samples, strict=True)
        ]
