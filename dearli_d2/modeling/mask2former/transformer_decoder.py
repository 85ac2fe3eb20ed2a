"""Mask2Former's transformer decoder: queries refined by masked cross-attention over three feature levels.

Mask logits are a product, <mask embedding, mask features>, and both resizing and point sampling are linear in the
mask features. So the full (B, Q, H/4, W/4) logits of the inner layers are never built: attention masks come from
resized mask features, losses from points (see `criterion.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..clip.ensembling import mask_pool
from ..linear import Linear, linear, product
from .pixel_decoder import PixelFeatures
from .position import sine_position


@dataclass
class DecoderOutput:
    """Predictions after the query features (index 0) and after each of the layers, R = layers + 1 in all.

    `class_outputs`: (R, B, Q, K + 1) class logits; (R, B, Q, E) embeddings when a text classifier follows; (R, B, Q, 0) of a
    class-agnostic decoder.
    `mask_embeddings`: (R, B, Q, C). `mask_features`: (B, C, H/4, W/4). `absent`: (B, Q) bool, queries that take no part in
    an image and carry no loss there; None = all take part.
    """

    class_outputs: torch.Tensor
    mask_embeddings: torch.Tensor
    mask_features: torch.Tensor
    absent: torch.Tensor | None = None

    def mask_logits(self, index: int = -1) -> torch.Tensor:
        """(B, Q, H/4, W/4), before the sigmoid."""
        return torch.einsum("bqc,bchw->bqhw", self.mask_embeddings[index], self.mask_features)

    def images(self, start: int, stop: int) -> DecoderOutput:
        """The predictions for images `start` to `stop` (excluded) of the batch."""
        return DecoderOutput(
            self.class_outputs[:, start:stop],
            self.mask_embeddings[:, start:stop],
            self.mask_features[start:stop],
            None if self.absent is None else self.absent[start:stop],
        )


@dataclass
class GivenQueries:
    """Queries that come with the image, before the decoder's own learned ones.

    `content`, `position`: (B, N, C). `absent`: (B, N) bool, True = nobody may attend to it. `joint`: False keeps given
    and learned queries from attending to each other.
    """

    content: torch.Tensor
    position: torch.Tensor
    absent: torch.Tensor
    joint: bool = True


class MLP(nn.Module):
    """Linear layers with ReLU between, as published (`layers.0.weight`, ...)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, layers: int) -> None:
        super().__init__()
        dims = [in_dim] + [hidden_dim] * (layers - 1) + [out_dim]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in itertools.pairwise(dims))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_dim) to (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def attend(
    attention: nn.MultiheadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention with the parameters of `attention`, through the fused kernel.

    Args:
        attention: has the parameters.
        query: (B, Q, C).
        key, value: (B, N, C).
        mask: (B, Q, N) bool, True = may attend; one mask for all heads.

    Returns:
        (B, Q, C).
    """
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    projected = [linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]
    return _attended(attention, projected[0], projected[1], projected[2], mask)


def _attended(
    attention: nn.MultiheadAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Computes `attend` from projected queries, keys and values."""
    q, k, v = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    mask = None if mask is None else mask[:, None]
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return linear(attended.transpose(1, 2).flatten(2), attention.out_proj.weight, attention.out_proj.bias)


class SelfAttentionLayer(nn.Module):
    """Self-attention among the queries, post-norm. `mask`: (B or 1, Q, Q) bool, True = may attend."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: torch.Tensor, position: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, Q, C) queries and their position embeddings to (B, Q, C)."""
        attention, dim = self.self_attn, queries.shape[-1]
        weight, bias = (x.split([2 * dim, dim]) for x in (attention.in_proj_weight, attention.in_proj_bias))
        q, k = linear(queries + position, weight[0], bias[0]).chunk(2, -1)
        return self.norm(queries + _attended(attention, q, k, linear(queries, weight[1], bias[1]), mask))


class CrossAttentionLayer(nn.Module):
    """Masked attention from the queries to the pixels, post-norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: torch.Tensor,
        position: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """(B, Q, C) queries with their position embeddings, and (B, N, C) projected pixels, to (B, Q, C). `mask`: (B, Q, N) bool."""
        attention = self.multihead_attn
        q = linear(queries + position, attention.in_proj_weight.chunk(3)[0], attention.in_proj_bias.chunk(3)[0])
        return self.norm(queries + _attended(attention, q, keys, values, mask))


def keys_and_values(
    layers: Sequence[CrossAttentionLayer], pixels: torch.Tensor, position: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of several layers that attend to the same pixels: one product for all keys, and one for all values.

    Args:
        layers: at least one.
        pixels: (B, N, C).
        position: (N, C).

    Returns:
        (B, N, C) keys and values of each layer.
    """
    attentions = [layer.multihead_attn for layer in layers]

    def project(x: torch.Tensor, part: int) -> Sequence[torch.Tensor]:
        weight = torch.cat([a.in_proj_weight.chunk(3)[part] for a in attentions])
        bias = torch.cat([a.in_proj_bias.chunk(3)[part] for a in attentions])
        return linear(x, weight, bias).chunk(len(attentions), -1)

    return list(zip(project(pixels + position, 1), project(pixels, 2), strict=True))


class FFNLayer(nn.Module):
    """Feed-forward network, post-norm."""

    def __init__(self, dim: int, feedforward_dim: int) -> None:
        super().__init__()
        self.linear1 = Linear(dim, feedforward_dim)
        self.linear2 = Linear(feedforward_dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        """(B, Q, C) to (B, Q, C)."""
        return self.norm(queries + self.linear2(F.relu(self.linear1(queries))))


class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Masked cross-attention to the levels in turn, self-attention of the queries and a feed-forward part (Mask2Former, Sec. 3.2.1).

    Args:
        in_dim: channels of the multi-scale features.
        dim: channels C of the queries.
        mask_dim: channels of the mask features.
        num_queries, heads, feedforward_dim, layers, levels: as published (layers = 9, levels = 3).
        class_head: maps (..., C) to class logits or to embeddings in the text space; it is named `class_embed`, as
            published. None in a class-agnostic decoder.
        logit_scale: True adds the learnable scale of a cosine classifier, ln(1 / 0.07) at the start.
        mask_pooling: True classifies a query with the mask features under its own mask too (FC-CLIP, Sec. 3.3); `dim` and
            `mask_dim` are the same then.
    """

    def __init__(
        self,
        in_dim: int,
        class_head: nn.Module | None,
        dim: int = 256,
        mask_dim: int = 256,
        num_queries: int = 100,
        heads: int = 8,
        feedforward_dim: int = 2048,
        layers: int = 9,
        levels: int = 3,
        logit_scale: bool = False,
        mask_pooling: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.num_levels = dim, levels
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttentionLayer(dim, heads) for _ in range(layers))
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttentionLayer(dim, heads) for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(FFNLayer(dim, feedforward_dim) for _ in range(layers))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.decoder_norm = nn.LayerNorm(dim)
        self.query_feat = nn.Embedding(num_queries, dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(levels, dim)
        if in_dim != dim:
            self.input_proj = nn.ModuleList(nn.Conv2d(in_dim, dim, 1) for _ in range(levels))
        else:
            self.input_proj = nn.ModuleList(nn.Identity() for _ in range(levels))
        self.class_embed = class_head
        self.mask_embed = MLP(dim, dim, mask_dim, 3)
        if logit_scale:
            self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.mask_pooling_proj = nn.Sequential(nn.LayerNorm(dim), Linear(dim, dim)) if mask_pooling else None

    def forward(self, pixels: PixelFeatures, given: GivenQueries | None = None) -> DecoderOutput:
        """See `DecoderOutput`; `given` queries come first."""
        projected, small_features = [], []
        for level, feature in enumerate(pixels.multi_scale):
            height, width = feature.shape[-2:]
            layers: list[Any] = list(self.transformer_cross_attention_layers)[level :: self.num_levels]
            tokens = self.input_proj[level](feature).flatten(2).transpose(1, 2) + self.level_embed.weight[level]
            place = sine_position(height, width, self.dim, feature.device).flatten(1).T
            projected.append(keys_and_values(layers, tokens, place) if layers else [])
            small_features.append(_resize(pixels.mask_features.detach(), (height, width)).flatten(2))

        position = self.query_embed.weight
        # not `len`, which would fix the batch size of an exported graph
        queries = self.query_feat.weight.expand(pixels.mask_features.shape[0], -1, -1)
        absent = may_attend = None
        if given is not None:
            learned = queries.shape[1]
            queries = torch.cat([given.content, queries], 1)
            position = torch.cat([given.position, position.expand(queries.shape[0], -1, -1)], 1)
            absent = F.pad(given.absent, (0, learned))
            may_attend = _may_attend(given, learned)
        normed = [self.decoder_norm(queries)]
        mask_embeddings = [self.mask_embed(normed[-1])]
        blocks = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for index, (cross_attention, self_attention, ffn) in enumerate(blocks):
            turn, level = divmod(index, self.num_levels)
            mask = attention_mask(mask_embeddings[-1].detach(), small_features[level])
            queries = cross_attention(queries, position, *projected[level][turn], mask)
            queries = ffn(self_attention(queries, position, may_attend))
            normed.append(self.decoder_norm(queries))
            mask_embeddings.append(self.mask_embed(normed[-1]))
        embeddings = torch.stack(mask_embeddings)
        class_outputs = self._class_outputs(torch.stack(normed), embeddings, pixels.mask_features)
        return DecoderOutput(class_outputs, embeddings, pixels.mask_features, absent)

    def _class_outputs(
        self, queries: torch.Tensor, mask_embeddings: torch.Tensor, mask_features: torch.Tensor
    ) -> torch.Tensor:
        """(R, B, Q, ...) outputs of the class head for normed queries; see `DecoderOutput`."""
        if self.class_embed is None:
            return queries[..., :0]
        if self.mask_pooling_proj is not None:
            pooled = []
            for embeddings in mask_embeddings:
                with torch.no_grad():  # the masks are binary
                    mask_logits = torch.einsum("bqc,bchw->bqhw", embeddings, mask_features)
                pooled.append(mask_pool(mask_features, mask_logits))
            queries = queries + self.mask_pooling_proj(torch.stack(pooled))
        output: torch.Tensor = self.class_embed(queries)
        return output


def _may_attend(given: GivenQueries, learned: int) -> torch.Tensor:
    """(B, Q, Q) bool: which query may attend to which. Absent queries attend to themselves too, so that no row is empty."""
    absent = F.pad(given.absent, (0, learned))
    own = torch.eye(absent.shape[1], dtype=torch.bool, device=absent.device)
    mask = ~absent[:, None] | own
    if not given.joint:
        is_given = torch.arange(absent.shape[1], device=absent.device) < given.absent.shape[1]
        mask = mask & (is_given[:, None] == is_given[None])
    return mask


def attention_mask(mask_embeddings: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Lets each query attend inside its own mask, or everywhere if that is empty (Mask2Former, eq. 2).

    Args:
        mask_embeddings: (B, Q, C).
        features: (B, C, N) mask features, resized to the level.

    Returns:
        (B, Q, N) bool, True = may attend.
    """
    inside = product(mask_embeddings, features.to(mask_embeddings.dtype)) >= 0
    return inside | ~inside.any(-1, keepdim=True)


def _resize(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear interpolation of (B, C, H, W) features to a smaller size.

    Where both sides shrink by even factors, the result is the mean of the four middle cells of each block. PyTorch's interpolation
    would use few threads of a GPU: one for each cell of the result, whatever the number of images and channels.
    """
    ratios = [full // small for full, small in zip(features.shape[-2:], size, strict=True)]
    whole = all(r % 2 == 0 and r * s == full for r, s, full in zip(ratios, size, features.shape[-2:], strict=True))
    slow = features.device.type == "cpu" and max(ratios) == 2
    if torch.compiler.is_exporting() or not whole or slow:
        return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
    y, x = (slice(r // 2 - 1, r // 2 + 1) for r in ratios)
    cells = features.unflatten(3, (size[1], ratios[1])).unflatten(2, (size[0], ratios[0]))
    return cells[:, :, :, y, :, x].mean((3, 5))
