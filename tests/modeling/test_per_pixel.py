"""Heads that classify every pixel."""

from __future__ import annotations

import pytest
import torch

from dearli_d2.config import get_config
from dearli_d2.modeling import build_model
from dearli_d2.modeling.per_pixel import DPTHead, UpsampleHead
from dearli_d2.modeling.per_pixel.dpt import LEVELS


def pyramid(strides=(4, 8, 16, 32), size=64, channels=(6, 8, 10, 12)):
    maps = zip(channels, strides, strict=True)
    return {
        f"res{i}": torch.randn(2, c, -(-size // s), -(-size // s), requires_grad=True)
        for i, (c, s) in enumerate(maps, start=2)
    }


CHANNELS = {"res2": 6, "res3": 8, "res4": 10, "res5": 12}


@pytest.mark.parametrize("norm", ["NONE", "GN"])
def test_dpt_fuses_every_level_into_twice_the_finest(norm):
    head = DPTHead(CHANNELS, 16, 5, norm)
    for strides, size in (((4, 8, 16, 32), 64), ((4, 8, 16, 32), 72), ((2, 4, 8, 8), 32)):
        maps = pyramid(strides, size)
        output = head(maps)
        assert output.shape == (2, 5, *(2 * side for side in maps["res2"].shape[2:]))
        output.square().sum().backward()
        assert all(m.grad.abs().sum() > 0 for m in maps.values())
    assert all(p.grad is not None for p in head.parameters())
    assert torch.equal(head.classify(head.features(maps)), head(maps))


@pytest.mark.parametrize("norm", ["NONE", "GN"])
def test_dpt_without_its_residual_blocks_is_the_sum_of_the_projected_levels(norm):
    """Each level resized step by step to the finest, with projections and output convolutions of one."""
    head = DPTHead(dict.fromkeys(LEVELS, 4), 4, 4, norm).eval()
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    for name in LEVELS:
        with torch.no_grad():
            head.project[name].weight[range(4), range(4), 1, 1] = 1
            head.out[name].weight[range(4), range(4)] = 1
    if norm == "NONE":
        torch.nn.init.dirac_(head.last[0].weight)
    torch.nn.init.dirac_(head.classifier.weight)
    maps = {k: v[:, :4].abs() for k, v in pyramid(channels=(4, 4, 4, 4)).items()}  # no ReLU changes anything
    options = {"mode": "bilinear", "align_corners": norm == "NONE"}
    resize = lambda x, side: torch.nn.functional.interpolate(x, size=(side, side), **options)  # noqa: E731
    expected = resize(maps["res5"], 4)
    for name, finer in (("res4", 8), ("res3", 16), ("res2", 32)):
        expected = resize(expected + maps[name], finer)
    assert torch.allclose(head(maps), expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["NONE", "BN"])
def test_dpt_equals_hugging_faces_fusion_with_the_same_weights(norm):
    """Without a norm Hugging Face's own resizing, with one that by the centres of cells."""
    peer = pytest.importorskip("transformers.models.dpt.modeling_dpt")
    config = peer.DPTConfig(fusion_hidden_size=16, use_batch_norm_in_fusion_residual=norm == "BN")
    head = DPTHead(CHANNELS, 16, 5, norm).eval()
    for name, tensor in head.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.normal_(std=0.3)
    maps = pyramid()
    fused = None
    for name in ("res5", "res4", "res3", "res2"):
        layer = peer.DPTFeatureFusionLayer(config, align_corners=norm == "NONE").eval()
        layer.projection.load_state_dict(head.out[name].state_dict())
        units = {"residual_layer2": head.fuse[name]} | ({} if fused is None else {"residual_layer1": head.refine[name]})
        for unit, ours in units.items():
            theirs = getattr(layer, unit)
            parts = {"NONE": (theirs.convolution1, theirs.convolution2)}.get(norm) or (
                theirs.convolution1, theirs.batch_norm1, theirs.convolution2, theirs.batch_norm2
            )  # fmt: skip
            learned = [x for x in ours.layers if not isinstance(x, torch.nn.ReLU)]
            for part, own in zip(parts, learned, strict=True):
                part.load_state_dict(own.state_dict())
        level = head.project[name](maps[name])
        fused = layer(level) if fused is None else layer(fused, level)
    if norm == "NONE":
        fused = torch.relu(torch.nn.functional.conv2d(fused, head.last[0].weight, head.last[0].bias, padding=1))
    expected = head.classifier(fused)
    assert expected.std() > 1
    assert (head(maps) - expected).abs().max() < 1e-5 * expected.std()


def test_a_normalised_head_has_the_names_and_shapes_it_always_had():
    """Checkpoints of heads with BN hold these, and their configs say BN."""
    dim, classes, expected = 16, 5, {}
    for name, channels in CHANNELS.items():
        expected[f"project.{name}.weight"] = (dim, channels, 3, 3)
        expected |= {f"out.{name}.weight": (dim, dim, 1, 1), f"out.{name}.bias": (dim,)}
        for block in ("fuse", "refine") if name != "res5" else ("fuse",):
            expected |= {f"{block}.{name}.layers.{i}.weight": (dim, dim, 3, 3) for i in (1, 4)}
            for i in (2, 5):
                at = f"{block}.{name}.layers.{i}."
                expected |= {at + part: (dim,) for part in ("weight", "bias", "running_mean", "running_var")}
                expected[at + "num_batches_tracked"] = ()
    expected |= {"classifier.weight": (classes, dim, 1, 1), "classifier.bias": (classes,)}
    assert {k: tuple(v.shape) for k, v in DPTHead(CHANNELS, dim, classes, "BN").state_dict().items()} == expected


def test_dinov2_s_with_the_head_has_the_printed_number_of_parameters(repo):
    """24.8 M is 24 795 637 in UniMatch V2's code, with a residual block of the coarsest level and a mask token that are never
    used."""
    cfg = get_config(repo / "configs/pascal_voc/segkc_labels.yaml", ["MODEL.BACKBONE.WEIGHTS", ""])
    never_used = 2 * (64 * 64 * 9 + 64) + 384
    assert sum(p.numel() for p in build_model(cfg).parameters()) + never_used == 24_795_637


def test_upsampling_head_quadruples_the_resolution():
    head = UpsampleHead(6, 8, 5)
    output = head(torch.randn(2, 6, 7, 9))
    assert output.shape == (2, 5, 28, 36)
    constant = head(torch.ones(1, 6, 8, 8))  # zero padding shows at the border only
    assert torch.allclose(constant[..., 12:20, 12:20], constant[..., 16:17, 16:17].expand(-1, -1, 8, 8), atol=1e-4)
