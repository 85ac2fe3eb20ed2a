"""The tiny CLIP of miniworld: an OpenCLIP model of 0.5 M image-tower parameters, its training and its shipped weights.

Importing this module makes `miniworld-convnext` known to `open_clip`, with the weights in `dearli_d2/assets`.
It plays the part of the web-trained CLIP on the embedded data: it has seen captioned crops of *all* classes, never a
mask, and is frozen afterwards. It is trained on mosaics: captioned crops tiled to one image, one forward, features
pooled over the middle of each tile, so that its dense features stay local enough to be pooled under masks.

`dearli data tiny-clip --out clip.safetensors` trains it anew, in about nine minutes on two CPU cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.convnext import ConvNeXt
from torch import nn
from tqdm import trange

from ...data import miniworld
from ...files import write_atomically
from ..clip.text_tower import ClipModel

ASSETS = Path(__file__).parents[2] / "assets"
NAME = "miniworld-convnext"
WEIGHTS = ASSETS / f"{NAME}.safetensors"
CROP_SEED = 77  # scenes that no benchmark split uses
TILE = 32  # pixels
TEMPLATES = (
    "a photo of a {}.", "a {}.", "itap of a {}.", "a bad photo of a {}.", "a photo of the {}.", "a close-up photo of a {}.",
    "a photo of one {}.", "a low resolution photo of a {}.", "art of the {}.", "a drawing of a {}.", "{}",
)  # fmt: skip


@register_model
def miniworld_convnext(pretrained: bool = False, **kwargs: Any) -> ConvNeXt:
    """ConvNeXt with 3x3 kernels and strides 2, 4, 8, 8: small receptive field, dense last stage."""
    kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None), kwargs.pop("cache_dir", None)
    model: Any = ConvNeXt(  # its attributes have no types
        depths=(2, 2, 2, 1), dims=(32, 64, 96, 128), kernel_sizes=3, ls_init_value=1.0, patch_size=2,
        output_stride=16, **kwargs,
    )  # fmt: skip
    model.stages[0].downsample = nn.Identity()  # a stem of stride 2 would be followed by another stride of 2
    for info in model.feature_info:
        info["reduction"] //= 2
    model.pretrained_cfg = model.default_cfg = {"input_size": (3, 128, 128), "pool_size": (16, 16)}
    return model


open_clip.add_model_config(ASSETS / f"{NAME}.json")


def _mosaic(tiles: torch.Tensor, side: int) -> torch.Tensor:
    """(N * side * side, 3, T, T) tiles to (N, 3, side * T, side * T) images, row by row."""
    n, t = tiles.shape[0] // side**2, tiles.shape[-1]
    return tiles.view(n, side, side, 3, t, t).permute(0, 3, 1, 4, 2, 5).reshape(n, 3, side * t, side * t)


def train(steps: int, scenes: int, side: int = 8, mosaics: int = 2, lr: float = 2e-3, seed: int = 0) -> nn.Module:
    """Contrastive training on mosaics of crops of `scenes` scenes; returns the model in eval mode on the CPU."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    crops, classes = zip(*miniworld.crops(CROP_SEED, scenes, TILE), strict=True)
    pool = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    labels = torch.tensor([cls.id - 1 for cls in classes])
    rate = torch.bincount(labels, minlength=len(miniworld.CLASSES)).clamp(min=1).float()[labels].pow(-0.5)

    model = open_clip.create_model(NAME, pretrained=None).to(device).train()
    tokenizer = open_clip.get_tokenizer(NAME)
    tokens = torch.stack([tokenizer([t.format(c.name) for c in miniworld.CLASSES]) for t in TEMPLATES]).to(device)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 1.0) * (1 - step / steps) ** 0.9
    )
    visual = model.visual
    progress = trange(steps, desc="tiny CLIP", unit="step")
    for step in progress:
        picks = torch.multinomial(rate, mosaics * side**2, replacement=True, generator=generator)
        tiles = pool[picks].float() / 255
        if step % 2:
            tiles = tiles.flip(-1)
        images = _mosaic((tiles - mean) / std, side).to(device)
        dense = visual.trunk.forward_features(images)
        # the middle half of each tile, where its caption is true
        cells = dense.shape[-1] // side
        middle = dense.unflatten(2, (side, cells)).unflatten(4, (side, cells))[:, :, :, cells // 4 : -cells // 4]
        pooled = middle[..., cells // 4 : -cells // 4].mean((3, 5)).permute(0, 2, 3, 1).flatten(0, 2)
        image_embedding = F.normalize(visual.head(visual.trunk.forward_head(pooled[..., None, None])), dim=-1)
        template = tokens[int(torch.randint(len(TEMPLATES), (1,), generator=generator))]
        text_embedding = F.normalize(model.encode_text(template), dim=-1)
        logits = model.logit_scale.exp().clamp(max=100) * image_embedding @ text_embedding.T
        loss = F.cross_entropy(logits, labels[picks].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    return model.cpu().eval()


def save(model: nn.Module, path: Path) -> None:
    """Writes fp16 weights.

    Rows of the token table that no training caption used were never trained. They are zeroed, so that the file compresses.
    """
    state = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    captions = [t.format(c.name) for t in TEMPLATES for c in miniworld.CLASSES]
    used = open_clip.get_tokenizer(NAME)(captions).unique()
    table = torch.zeros_like(state["token_embedding.weight"])
    table[used] = state["token_embedding.weight"][used]
    state["token_embedding.weight"] = table
    write_atomically(path, lambda temporary: save_file(state, temporary))


@torch.no_grad()
def oracle_accuracy(model: ClipModel, scenes: int = 100, seed: int = 0) -> dict[str, float]:
    """Share of segments that get the right class from dense features pooled under ground-truth masks.

    It is measured on scenes of the val split, for things, stuff and all, as in the paper's Fig. 3.
    """
    from ..clip.ensembling import clip_head, mask_pool

    tokenizer = open_clip.get_tokenizer(NAME)
    text = torch.stack(
        [F.normalize(model.encode_text(tokenizer([t.format(c.name) for c in miniworld.CLASSES])), dim=-1) for t in TEMPLATES]
    )  # fmt: skip
    text = F.normalize(text.mean(0), dim=-1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for index in range(scenes):
        scene = miniworld.make_scene(seed, index, "val")
        image = torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255
        dense = model.visual.trunk.forward_features(((image - mean) / std)[None])
        masks = torch.stack([torch.from_numpy(scene.segments == i + 1) for i in range(len(scene.classes))])
        pooled = mask_pool(dense, masks[None].float() - 0.5)
        predicted = (clip_head(model.visual, pooled)[0] @ text.T).argmax(-1)
        for cls, guess in zip(scene.classes, predicted.tolist(), strict=True):
            hits[cls.isthing].append(guess == cls.id - 1)
    share = {name: float(np.mean(hits[flag])) for name, flag in (("things", True), ("stuff", False))}
    return {**share, "all": float(np.mean(hits[True] + hits[False]))}
