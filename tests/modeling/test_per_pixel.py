"""Heads that classify every pixel."""

from __future__ import annotations

import pytest
import torch

from dearli_d2.modeling.per_pixel import DPTHead, UpsampleHead


def pyramid(strides=(4, 8, 16, 32), size=64, channels=(6, 8, 10, 12)):
    maps = zip(channels, strides, strict=True)
    return {
        f"res{i}": torch.randn(2, c, -(-size // s), -(-size // s), requires_grad=True)
        for i, (c, s) in enumerate(maps, start=2)
    }


def dpt():
    return DPTHead({"res2": 6, "res3": 8, "res4": 10, "res5": 12}, 16, 5)


def test_dpt_fuses_every_level_into_twice_the_finest():
    head = dpt()
    for strides, size in (((4, 8, 16, 32), 64), ((4, 8, 16, 32), 72), ((2, 4, 8, 8), 32)):
        maps = pyramid(strides, size)
        output = head(maps)
        assert output.shape == (2, 5, *(2 * side for side in maps["res2"].shape[2:]))
        output.square().sum().backward()
        assert all(m.grad.abs().sum() > 0 for m in maps.values())
    assert all(p.grad is not None for p in head.parameters())
    assert torch.equal(head.classify(head.features(maps)), head(maps))


def test_dpt_without_its_residual_blocks_is_the_sum_of_the_projected_levels():
    """Each level resized step by step to the finest, with projections and output convolutions of one."""
    head = DPTHead(dict.fromkeys(("res2", "res3", "res4", "res5"), 4), 4, 4).eval()
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    for name in ("res2", "res3", "res4", "res5"):
        with torch.no_grad():
            head.project[name].weight[range(4), range(4), 1, 1] = 1
            head.out[name].weight[range(4), range(4)] = 1
    torch.nn.init.dirac_(head.classifier.weight)
    maps = {k: v[:, :4] for k, v in pyramid(channels=(4, 4, 4, 4)).items()}
    resize = lambda x, side: torch.nn.functional.interpolate(x, size=(side, side), mode="bilinear")  # noqa: E731
    expected = resize(maps["res5"], 4)
    for name, finer in (("res4", 8), ("res3", 16), ("res2", 32)):
        expected = resize(expected + maps[name], finer)
    assert torch.allclose(head(maps), expected, atol=1e-5)


def test_dpt_equals_hugging_faces_fusion_with_the_same_weights():
    peer = pytest.importorskip("transformers.models.dpt.modeling_dpt")
    config = peer.DPTConfig(fusion_hidden_size=16, use_batch_norm_in_fusion_residual=True)
    head = DPTHead({"res2": 6, "res3": 8, "res4": 10, "res5": 12}, 16, 5, "BN").eval()
    for name, tensor in head.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.normal_(std=0.3)
    maps = pyramid()
    fused = None
    for name in ("res5", "res4", "res3", "res2"):
        layer = peer.DPTFeatureFusionLayer(config, align_corners=False).eval()
        layer.projection.load_state_dict(head.out[name].state_dict())
        units = {"residual_layer2": head.fuse[name]} | ({} if fused is None else {"residual_layer1": head.refine[name]})
        for unit, ours in units.items():
            theirs = getattr(layer, unit)
            parts = (theirs.convolution1, theirs.batch_norm1, theirs.convolution2, theirs.batch_norm2)
            for part, index in zip(parts, (1, 2, 4, 5), strict=True):
                part.load_state_dict(ours.layers[index].state_dict())
        level = head.project[name](maps[name])
        fused = layer(level) if fused is None else layer(fused, level)
    expected = head.classifier(fused)
    assert torch.allclose(head(maps), expected, rtol=1e-4, atol=1e-3)
    assert expected.std() > 1


def test_upsampling_head_quadruples_the_resolution():
    head = UpsampleHead(6, 8, 5)
    output = head(torch.randn(2, 6, 7, 9))
    assert output.shape == (2, 5, 28, 36)
    constant = head(torch.ones(1, 6, 8, 8))  # zero padding shows at the border only
    assert torch.allclose(constant[..., 12:20, 12:20], constant[..., 16:17, 16:17].expand(-1, -1, 8, 8), atol=1e-4)
