"""The text tower of an OpenCLIP model, by its parts: tokens in, features of every token or one embedding out."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn

from ...errors import ConfigError

_POOLS = ("argmax", "eos")
ClipModel: TypeAlias = Any  # a model of open_clip or one of its towers; the package has no types


def text_tower_of(clip_model: ClipModel) -> ClipModel:
    """The part of an OpenCLIP model that has `token_embedding`, `transformer`, `ln_final` and `text_projection`.

    Raises:
        ConfigError: a text tower of another kind.
    """
    tower = getattr(clip_model, "text", clip_model)
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    if not hasattr(tower, "token_embedding") or pool not in _POOLS:
        raise ConfigError(f"the text tower {type(tower).__name__} cannot take learnable prompts")
    return tower


def token_features(tower: ClipModel, embedded: torch.Tensor) -> torch.Tensor:
    """Runs (B, n, C) embedded tokens through the transformer of a text tower: features of every token, before pooling."""
    length = embedded.shape[1]
    mask = None if tower.attn_mask is None else tower.attn_mask[:length, :length]
    return tower.ln_final(tower.transformer(embedded + tower.positional_embedding[:length], attn_mask=mask))


def text_embedding(tower: ClipModel, embedded: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """(B, n, C) embedded tokens, and (B,) the places of their end tokens, to (B, E)."""
    x = token_features(tower, embedded)
    x = x[torch.arange(len(x), device=x.device), end]
    projection = tower.text_projection
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection
