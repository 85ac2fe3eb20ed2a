"""A model whose answers are known: the class of a pixel is its grey value divided by 40."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dearli_d2.data.mappers import TestMapper
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.modeling.segmenter import Segmenter

CLASSES = 4


class _Grey(nn.Module):
    size_divisibility = 4

    def forward(self, images):
        return {"res5": F.adaptive_avg_pool2d(images, 2)}


class StubModel(Segmenter):
    """Sure of grey values 0, 40, 80 and 120; of others it guesses between the last two classes.

    Args:
        wrong: says another class everywhere.
        opinions: has two classifiers, which agree.
    """

    def __init__(self, wrong: bool = False, opinions: bool = False) -> None:
        super().__init__(_Grey(), Taxonomy.from_text("a, b, c, d"), [0.0] * 3, [1.0] * 3)
        self.wrong, self.two = wrong, opinions
        self.eval()

    @classmethod
    def from_config(cls, cfg, taxonomy=None):
        return {}

    def _scores(self, images):
        value = (images[:, 0] / 40).round().long() + int(self.wrong)
        known = F.one_hot(value.clamp(0, CLASSES - 1), CLASSES).movedim(-1, 1).float()
        guess = torch.tensor([0.0, 0.0, 0.5, 0.5]).view(1, CLASSES, 1, 1).expand_as(known)
        return torch.where((value < CLASSES)[:, None], 0.94 * known + 0.015, guess)

    def scores(self, inputs, samples):
        return self._scores(inputs.tensor)

    def outputs(self, batch):
        images = self.preprocess(batch)
        scores = self._scores(images.tensor)
        return [
            {"sem_seg": F.interpolate(s[None, :, :h, :w], (x["height"], x["width"]), mode="nearest-exact")[0]}
            for s, (h, w), x in zip(scores, images.image_sizes, batch, strict=True)
        ]

    def raw_outputs(self, images, samples=None):
        return {"logits": self._scores(images).log()}

    def opinions(self, images):
        found = self._scores(images)[..., ::4, ::4]
        return {"learned": found, "zero-shot": found} if self.two else {}

    def backbone_paths(self):
        return [(self.backbone, lambda images: list(self.backbone(images).values()))]

    def losses(self, streams):
        raise NotImplementedError

    network = pseudo_label = set_taxonomy = losses


def mapper() -> TestMapper:
    return TestMapper(32, 64)
