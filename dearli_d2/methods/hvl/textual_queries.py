"""Queries from class names, and their exchange with the pixels inside the pixel decoder (HVL, "HTQG" and "PTRM")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import nn

from ...modeling.mask2former.deformable_attention import Shapes
from ...modeling.mask2former.transformer_decoder import MLP, attend


@dataclass(frozen=True)
class PixelDecoderSizes:
    """Sizes of the pixel decoder, which the textual queries pass.

    Args:
        dim: channels D of its maps and of the queries.
        heads: heads of its attention.
        feedforward_dim: channels inside its feed-forward networks.
        layers: number of its layers.
    """

    dim: int
    heads: int
    feedforward_dim: int
    layers: int

    @classmethod
    def of(cls, cfg: CfgNode) -> PixelDecoderSizes:
        """Reads the sizes from a config."""
        decoder = cfg.MODEL.PIXEL_DECODER
        return cls(decoder.DIM, decoder.HEADS, decoder.FEEDFORWARD_DIM, decoder.LAYERS)


class TextualQueryGenerator(nn.Module):
    """Turns text embeddings into queries, with a two-layer MLP for each level.

    Args:
        embedding_dim: E, width of the text embeddings.
        dim: D, channels of the queries.
        levels: L, coarse to fine.
        hierarchy: False has one MLP, whose query of a class is the same at all levels.
    """

    def __init__(self, embedding_dim: int, dim: int, levels: int = 3, hierarchy: bool = True) -> None:
        super().__init__()
        self.num_levels = levels
        self.levels = nn.ModuleList(MLP(embedding_dim, dim, dim, 2) for _ in range(levels if hierarchy else 1))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(K, E) to (L, K, D)."""
        return torch.stack([level(embeddings) for level in self.levels]).expand(self.num_levels, -1, -1)


def diversity_loss(queries: torch.Tensor) -> torch.Tensor:
    """L_div: the squared cosines between a class's queries of different levels, summed over pairs, mean over classes.

    It is 0 if the levels are orthogonal and L (L - 1) / 2 if they are equal.

    Args:
        queries: (L, K, D).
    """
    unit = F.normalize(queries.float(), dim=-1)
    cosines = torch.einsum("lkd,mkd->klm", unit, unit)
    return cosines.square().triu(1).sum((1, 2)).mean()


def presence_of_targets(labels: list[torch.Tensor], background: torch.Tensor) -> torch.Tensor:
    """Presence of the classes of the ground truth.

    Args:
        labels: contiguous class ids of each image.
        background: (K,) bool, the classes that are always present.

    Returns:
        (B, K) fp32, 1 = present.
    """
    presence = background.float().repeat(len(labels), 1)
    for row, classes in zip(presence, labels, strict=True):
        row[classes] = 1
    return presence


def background_classes(names: Sequence[Sequence[str]]) -> torch.Tensor:
    """Finds the classes that are called "background".

    Such a class has no look of its own that CLIP could recognise, so it is present in every image.

    Args:
        names: name and synonyms of each of the K classes.

    Returns:
        (K,) bool.
    """
    return torch.tensor(["background" in (name.strip().lower() for name in of_class) for of_class in names])


def presence_of_logits(logits: torch.Tensor, threshold: float, background: torch.Tensor) -> torch.Tensor:
    """Presence of the classes in whole images.

    Args:
        logits: (B, K) of zero-shot recognition.
        threshold: lower posteriors, divided by the largest one, become 0.
        background: (K,) bool, the classes that are always present.

    Returns:
        (B, K) in 0..1.
    """
    return _relative(logits.float().softmax(-1), threshold, background)


def presence_of_cells(
    logits: torch.Tensor, threshold: float, background: torch.Tensor, share: float = 0.03
) -> torch.Tensor:
    """Presence of the classes in images of many cells. Unlike a view of the whole image it finds small objects.

    Args:
        logits: (B, N, K) of zero-shot recognition in N cells.
        threshold: lower scores, divided by the largest one, become 0.
        background: (K,) bool, the classes that are always present.
        share: share of the cells, those that show a class best, in which its mean posterior is taken.

    Returns:
        (B, K) in 0..1.
    """
    posterior = logits.float().softmax(-1)
    cells = posterior.shape[1]
    if torch.compiler.is_exporting():  # graphs have no `topk` of a number that depends on the image's size
        count = (torch.ones((), dtype=torch.float64, device=logits.device) * cells * share).round().clamp(min=1)
        chosen = torch.arange(cells, device=logits.device) < count
        largest = posterior.sort(dim=1, descending=True).values * chosen[:, None]
        return _relative(largest.sum(1) / count.float(), threshold, background)
    best = posterior.topk(max(1, round(share * cells)), dim=1).values
    return _relative(best.mean(1), threshold, background)


def _relative(scores: torch.Tensor, threshold: float, background: torch.Tensor) -> torch.Tensor:
    # background takes no part in the comparison: where its text fits best, the best object still counts as present
    objects = scores.masked_fill(background, 0)
    relative = objects / objects.amax(-1, keepdim=True).clamp(min=1e-12)
    return relative.masked_fill(relative < threshold, 0).masked_fill(background, 1)


class PixelTextRefinement(nn.Module):
    """One exchange between the pixels and the textual queries of the same level, with norms before the layers.

    The pixels read from the queries, then the queries from the pixels. A feed-forward network on the queries follows. The
    last layer of each part starts at zero, so training starts at a plain pixel decoder.

    Args:
        dim: D, channels of pixels and queries.
        heads: heads of the attention.
        feedforward_dim: channels inside the feed-forward network.
    """

    def __init__(self, dim: int, heads: int = 8, feedforward_dim: int = 1024) -> None:
        super().__init__()
        self.pixel_norm, self.text_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.pixel_from_text = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.text_from_pixel = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.refined_norm, self.ffn_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, feedforward_dim), nn.Linear(feedforward_dim, dim)
        for layer in (self.pixel_from_text.out_proj, self.text_from_pixel.out_proj, self.linear2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, pixels: torch.Tensor, queries: torch.Tensor, absent: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lets the pixels read from the queries, then the queries from the pixels.

        Args:
            pixels: (B, N, D) of one level.
            queries: (B, K, D) of that level.
            absent: (B, K) bool, not all True.

        Returns:
            The refined pixels and queries.
        """
        text = self.text_norm(queries)
        present = ~absent[:, None].expand(-1, pixels.shape[1], -1)
        pixels = pixels + attend(self.pixel_from_text, self.pixel_norm(pixels), text, text, present)
        values = self.refined_norm(pixels)
        queries = queries + attend(self.text_from_pixel, text, values, values)
        return pixels, queries + self.linear2(F.relu(self.linear1(self.ffn_norm(queries))))


class PixelTextExchange(nn.Module):
    """Runs a `PixelTextRefinement` after each layer of the pixel decoder, the same for all levels.

    Args:
        layers: number of layers of the pixel decoder.
        dim: see `PixelTextRefinement`.
        heads: see `PixelTextRefinement`.
        feedforward_dim: see `PixelTextRefinement`.
    """

    def __init__(self, layers: int, dim: int, heads: int = 8, feedforward_dim: int = 1024) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PixelTextRefinement(dim, heads, feedforward_dim) for _ in range(layers))

    def start(self, queries: torch.Tensor, absent: torch.Tensor) -> Exchange:
        """Begins a pass through the pixel decoder.

        Args:
            queries: (B, L, K, D), coarse to fine.
            absent: (B, K) bool.
        """
        return Exchange(self.layers, queries, absent)


class Exchange:
    """The `refine` hook of one pass through the pixel decoder.

    Args:
        layers: one `PixelTextRefinement` for each layer.
        queries: (B, L, K, D); the attribute of that name holds their refined state.
        absent: (B, K) bool.
    """

    def __init__(self, layers: nn.ModuleList, queries: torch.Tensor, absent: torch.Tensor) -> None:
        self.layers, self.queries, self.absent = layers, queries, absent

    def __call__(self, index: int, tokens: torch.Tensor, shapes: Shapes) -> torch.Tensor:
        levels = tokens.split([height * width for height, width in shapes], 1)
        refined = [
            self.layers[index](pixels, queries, self.absent)
            for pixels, queries in zip(levels, self.queries.unbind(1), strict=True)
        ]
        self.queries = torch.stack([queries for _, queries in refined], 1)
        return torch.cat([pixels for pixels, _ in refined], 1)
