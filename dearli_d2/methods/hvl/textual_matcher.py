"""Fixed matching of textual queries and Hungarian matching of free ones (HVL, "DQTD")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ...modeling.mask2former.losses import image_of_target
from ...modeling.mask2former.matcher import HungarianMatcher, Matches
from ...modeling.mask2former.transformer_decoder import DecoderOutput
from ...structures import Targets


class TextualMatcher:
    """Matches textual queries by their class and free queries as in Mask2Former.

    The query of level l and class k answers for class k wherever k is in the image, in every prediction. The free queries
    come last. So a segment has L + 1 queries, or L where there are no free ones. Targets must be semantic, with at most one
    segment of a class in an image.

    Args:
        free: matches the free queries.
        num_classes: K.
        levels: L.
    """

    def __init__(self, free: HungarianMatcher, num_classes: int, levels: int = 3) -> None:
        self.free, self.num_classes, self.levels = free, num_classes, levels

    @torch.no_grad()
    def __call__(self, class_logits: torch.Tensor, output: DecoderOutput, targets: Sequence[Targets]) -> Matches:
        """Matches all predictions of a batch; see `Matcher`."""
        device, textual = class_logits.device, self.num_classes * self.levels
        image = image_of_target(targets).to(device, non_blocking=True)
        labels = torch.cat([t.labels for t in targets])
        level = torch.arange(self.levels, device=device) * self.num_classes
        query = (labels[:, None] + level).expand(len(class_logits), -1, -1)
        # a class that was taken for absent has no query to answer for it
        missing = output.absent[image[:, None], query[0]] if output.absent is not None else torch.zeros_like(query[0])
        matched = (~missing.bool()).float().expand(len(class_logits), -1, -1)
        if class_logits.shape[2] == textual:
            return Matches(image, query, matched)
        free_output = replace(output, mask_embeddings=output.mask_embeddings[:, :, textual:])
        free = self.free(class_logits[:, :, textual:], free_output, targets)
        return Matches(image, torch.cat([query, free.query + textual], -1), torch.cat([matched, free.matched], -1))
