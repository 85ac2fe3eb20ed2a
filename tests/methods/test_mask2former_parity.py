"""Mask2Former whole, at its published size and under its published names, against Hugging Face's with the same weights."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig
from transformers.utils import is_torch_available

from benchmarks.hf_peer import copy_weights
from dearli_d2.checkpoint import load_state
from dearli_d2.config import get_config
from dearli_d2.modeling import build_model
from tests.published import random_weights, shapes_of

pytestmark = pytest.mark.skipif(not is_torch_available(), reason="the installed transformers needs a newer torch")

STAGES = [f"stage{i + 1}" for i in range(4)]
SWIN_T = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7, "drop_path_rate": 0.0}
# begins and parts of Hugging Face's names, and the published ones
RESNET = (
    (r"^embedder\.embedder\.convolution\.", "stem.conv1."),
    (r"^embedder\.embedder\.normalization\.", "stem.conv1.norm."),
    (r"^encoder\.stages\.(\d)\.layers\.", lambda m: f"res{int(m[1]) + 2}."),
    (r"\.layer\.(\d)\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"(conv\d|shortcut)\.convolution\.", r"\1."),
    (r"\.normalization\.", ".norm."),
)
SWIN = (
    (r"^swin\.", ""),
    (r"^hidden_states_norms\.stage(\d)", lambda m: f"norm{int(m[1]) - 1}"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layers\.", "layers."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(self\.|relative_position_bias\.)?relative_position", ".attn.relative_position"),
    (r"\.attention\.(self\.)?(q|k|v)(_proj|uery|ey|alue)\.", r".attn.\2."),
    (r"\.attention\.(o_proj|output\.dense)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.|\.mlp\.fc1\.", ".mlp.fc1."),
    (r"\.output\.dense\.|\.mlp\.fc2\.", ".mlp.fc2."),
)

# constants, and a norm of the whole network that its maps do not pass
UNUSED = ("num_batches_tracked", "relative_position_index", "layernorm.weight", "layernorm.bias")


def backbone_weights(backbone: torch.nn.Module, theirs: torch.nn.Module, rules) -> dict[str, torch.Tensor]:
    """The weights of our backbone under the names of theirs; every one of theirs has a counterpart."""
    own, result = backbone.state_dict(), {}
    for name in theirs.state_dict():
        ours = name
        for pattern, replacement in rules:
            ours = re.sub(pattern, replacement, ours)
        if name.endswith(UNUSED):
            continue
        part = re.search(r"\.attn\.([qkv])\.", ours)
        if part:
            result[name] = own[ours.replace(part[0], ".attn.qkv.")].chunk(3)["qkv".index(part[1])]
        else:
            result[name] = own[ours]
    return result


@pytest.mark.parametrize(
    ("config", "names", "backbone", "rules", "size"),
    [
        ("m2f_r50", "mask2former_r50", {"kind": ResNetConfig}, RESNET, (64, 96)),
        # each map is larger than a window, which Hugging Face's Swin would shrink otherwise
        ("m2f_swin_t", "mask2former_swin_t", {"kind": SwinConfig, **SWIN_T}, SWIN, (256, 288)),
    ],
)
@torch.no_grad()
def test_logits_equal_at_the_published_size(repo, config, names, backbone, rules, size):
    ours = build_model(get_config(repo / f"configs/coco_panoptic/{config}.yaml", ["MODEL.DEVICE", "cpu"]))
    indices = {name: t for name, t in ours.state_dict().items() if name.endswith("relative_position_index")}
    report = load_state(ours, random_weights(shapes_of(names)) | indices, "published")
    assert report.complete
    kind = backbone.pop("kind")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = Mask2FormerForUniversalSegmentation(
            Mask2FormerConfig(backbone_config=kind(out_features=STAGES, **backbone), num_labels=133)
        )
    copy_weights(ours.sem_seg_head, peer)
    encoder = peer.model.pixel_level_module.encoder
    left = encoder.load_state_dict(backbone_weights(ours.backbone, encoder, rules), strict=False)
    assert not [n for n in left.missing_keys if not n.endswith(UNUSED)]
    image = torch.randint(0, 256, (3, *size)).float()
    images = ours.eval().preprocess([{"image": image}])
    assert images.tensor.shape[-2:] == size
    mean, std = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])  # of RGB, in the published configs
    normalised = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    class_logits, mask_logits = ours.predict(images.tensor)
    theirs = peer.eval()(normalised[None])
    for own, their in (
        (class_logits, theirs.class_queries_logits),
        (mask_logits, theirs.masks_queries_logits),
    ):
        assert own.shape == their.shape
        assert their.std() > 0.1
        assert (own - their).abs().max() <= 1e-4 * their.abs().max()
    assert class_logits.std(1).max() > 0.1  # queries differ
