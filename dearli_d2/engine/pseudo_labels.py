"""From unlabelled samples to what the student trains on: pseudo-labels of weak views, CutMix, strong views."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch

from ..data.mappers import passed_on
from ..structures import Targets
from .classmix import ClassMix
from .cutmix import CutMix, mix_images, mix_targets


class PseudoLabeler:
    """Unlabelled samples to training samples: labels the weak views, then mixes strong views and labels alike.

    Args:
        label: weak views to pseudo-labels, by the name that they have in a training sample: {"targets": ...} of a teacher, and
            in cross supervision more, for other networks (see `SegKC.cross_labels`).
        mix: None leaves it out.
        thing_ids: classes whose segments it keeps apart.
        device: of the results.
    """

    def __init__(
        self,
        label: Callable[[list[dict]], dict[str, list[Targets]]],
        mix: CutMix | ClassMix | None,
        thing_ids: Collection[int],
        device: torch.device | str,
    ) -> None:
        self.label, self.mix, self.thing_ids, self.device = label, mix, thing_ids, device

    def __call__(self, samples: list[dict], rng: np.random.Generator) -> list[dict]:
        """Labels and mixes one batch.

        Args:
            samples: of `UnlabeledTrainMapper`, all of one size. rng: draws partners and boxes.

        Returns:
            Samples for the student, those of the second strong view, if there is one, after all of the first: "image"
            (3, S, S) uint8, the mixed strong view; "targets" and other labels of it; "inside", no padding; what is
            `passed_on`, where a mixed image has the captions of both; and for pictures "weak", the weak view, and
            "pseudo_label", what was seen there.
        """
        labels = self.label(samples)
        views = torch.stack([x["strong"] for x in samples], 1).to(self.device, non_blocking=True)
        return [sample for images in views for sample in self._of_view(samples, images, labels, rng)]

    def _of_view(
        self, samples: list[dict], images: torch.Tensor, labels: dict[str, list[Targets]], rng: np.random.Generator
    ) -> list[dict]:
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
