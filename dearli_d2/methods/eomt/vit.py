"""A plain Vision Transformer of timm, run block by block, so that tokens can be added and attention can be masked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Block, VisionTransformer, checkpoint_filter_fn
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...errors import ConfigError, WeightsError, first_few
from ...modeling.backbone.timm import published
from ...weights import read_state_dict
from . import tiny_vit as _tiny_vit  # noqa: F401  registration


class PlainViT(nn.Module):
    """The patch embedding, the blocks and the last norm of a ViT.

    Args:
        vit: with learned position embeddings for square images of one size. Those of other sizes are resized.
        recompute: computes blocks again in the backward pass instead of keeping what they need.
    """

    def __init__(self, vit: VisionTransformer, recompute: bool = False) -> None:
        super().__init__()
        self.vit, self.recompute = vit, recompute

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.vit.embed_dim

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.vit.patch_embed.patch_size[0]

    @property
    def size_divisibility(self) -> int:
        """Both sides of an image must be multiples of it."""
        return self.patch

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the position embeddings are made for."""
        return self.vit.patch_embed.img_size[0]

    @property
    def prefix(self) -> int:
        """Number of class and register tokens, which come before the patches."""
        return self.vit.num_prefix_tokens

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.vit.blocks)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Makes (B, prefix + H W / patch^2, C) tokens with positions from (B, 3, H, W) normalised images."""
        x = self.vit._pos_embed(self.vit.patch_embed(images))
        return self.vit.norm_pre(self.vit.patch_drop(x))

    def block(self, index: int, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Runs a block.

        Args:
            index: of the block, from 0.
            x: (B, N, C) tokens.
            mask: (B, Q, N) bool, True where one of the first Q tokens may attend. Other tokens attend to all. None = no mask.
        """
        block = self.vit.blocks[index]
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(run_block, block, x, mask, use_reentrant=False)
        return run_block(block, x, mask)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the norm behind the last block."""
        return self.vit.norm(x)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Makes (B, N, C) tokens behind the last norm from (B, 3, H, W) normalised images, without queries."""
        x = self.embed(images)
        for index in range(self.depth):
            x = self.block(index, x)
        return self.norm(x)


def run_block(block: nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Runs a block of timm; see `PlainViT.block`."""
    if mask is None:
        return block(x)
    assert isinstance(block, Block) and isinstance(block.attn, Attention)  # noqa: PT018  `build_vit` saw to it
    attended = masked_attention(block.attn, block.norm1(x), mask)
    x = x + block.drop_path1(block.ls1(attended))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def masked_attention(attention: Attention, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Applies self-attention with the parameters of timm's `Attention`.

    Only the rows of the first Q tokens are computed with a mask: there is no (N, N) mask, and the other rows use the
    fused kernel without one.

    Args:
        attention: of a block.
        x: (B, N, C) tokens.
        mask: (B, Q, N) bool, True = may attend; one mask for all heads.
    """
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(q), attention.k_norm(k)
    masked, free = q.split([mask.shape[1], q.shape[2] - mask.shape[1]], dim=2)
    dropout = attention.attn_drop.p if attention.training else 0.0
    attended = torch.cat(
        [
            F.scaled_dot_product_attention(masked, k, v, mask[:, None], dropout),
            F.scaled_dot_product_attention(free, k, v, None, dropout),
        ],
        dim=2,
    )
    return attention.proj_drop(attention.proj(attended.transpose(1, 2).flatten(2)))


def build_vit(arch: str, weights: str, image_size: int, patch_size: int) -> VisionTransformer:
    """Builds a ViT without a classifier, for images of any size.

    Weights of another patch size or image size are resized, as the authors of EoMT do with DINOv2's patches of 14 pixels.

    Args:
        arch: name of a timm model.
        weights: "pretrained" (of timm; downloaded unless it is here), a local file, or "" for a random start.
        image_size, patch_size: sides in pixels; the second divides the first.

    Raises:
        ConfigError: `arch` is no plain ViT.
        WeightsError: the weights cannot be had or do not fit.
    """
    if not timm.is_model(arch):
        raise ConfigError(f"MODEL.BACKBONE.ARCH: timm has no model {arch!r}; plain ViTs are called vit_...")
    options: dict[str, Any] = {
        "num_classes": 0,
        "img_size": image_size,
        "patch_size": patch_size,
        "dynamic_img_size": True,
    }
    published_weights = published(arch) if weights == "pretrained" else {}
    try:
        vit = timm.create_model(arch, **published_weights, **options)
    except Exception as error:  # timm raises many types
        if not published_weights:
            raise _no_plain_vit(arch, f" ({error})") from error
        file = published_weights["pretrained_cfg_overlay"]["file"]
        raise WeightsError(f"{file} does not fit timm's {arch}: {error}") from error
    if not isinstance(vit, VisionTransformer) or vit.pos_embed is None:
        raise _no_plain_vit(arch)
    if not all(_is_plain(block) for block in vit.blocks):
        raise _no_plain_vit(arch)
    if weights and weights != "pretrained":
        _load(vit, weights)
    return vit


def _is_plain(block: nn.Module) -> bool:
    """Tells whether `run_block` does what the block does: timm may have gates and norms inside of the attention."""
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    gate, norm = getattr(block.attn, "gate", None), getattr(block.attn, "norm", None)
    return gate is None and (norm is None or isinstance(norm, nn.Identity))


def _no_plain_vit(arch: str, reason: str = "") -> ConfigError:
    return ConfigError(
        f"MODEL.BACKBONE.ARCH: {arch} is no plain ViT with learned positions, which EoMT needs{reason}; "
        "one is vit_large_patch14_reg4_dinov2"
    )


def _load(vit: VisionTransformer, path: str) -> None:
    if not Path(path).is_file():
        raise WeightsError(
            f"MODEL.BACKBONE.WEIGHTS: {path!r} is no file; use 'pretrained' (timm downloads them), the path of a local file, "
            "or '' for a random start"
        )
    own = vit.state_dict()
    state = {n: v for n, v in checkpoint_filter_fn(read_state_dict(path), vit).items() if n in own}
    unfit = [n for n, value in own.items() if n not in state or state[n].shape != value.shape]
    if unfit:
        raise WeightsError(f"{path} does not fit this ViT: {len(unfit)} of {len(own)} tensors: {first_few(unfit)}")
    vit.load_state_dict(state)
