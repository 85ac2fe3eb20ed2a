"""The DPT segmenter, SegKC's junior alone: images of any size, levels of plain ViTs, feature dropout."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from dearli_d2.modeling.backbone.pyramid import Reassemble
from dearli_d2.modeling.backbone.timm import TimmBackbone
from dearli_d2.modeling.per_pixel import DPTHead
from dearli_d2.modeling.per_pixel.dpt import LEVELS
from dearli_d2.modeling.per_pixel.dpt_segmenter import DPTSegmenter, channel_dropout, fitted, pyramid_of
from dearli_d2.modeling.segmenter import ReadOut


class Patches(torch.nn.Module):
    """A backbone of one convolution and a `Reassemble`, as a plain ViT with that patch is seen from outside."""

    def __init__(self, patch=14):
        super().__init__()
        self.size_divisibility = patch
        self.embed = torch.nn.Conv2d(3, 8, patch, stride=patch)
        self.pyramid = Reassemble(8, (4, 6, 8, 10), patch)

    def output_shape(self):
        return self.pyramid.output_shape()

    def forward(self, images):
        assert images.shape[2] % self.size_divisibility == images.shape[3] % self.size_divisibility == 0
        return self.pyramid([self.embed(images)] * 4)


def patch_segmenter(patch=14, **options):
    backbone = Patches(patch)
    head = DPTHead({name: shape.channels for name, shape in backbone.output_shape().items()}, 8, 5, "BN_CPU")
    arguments = {"taxonomy": None, "pixel_mean": [0.0] * 3, "pixel_std": [255.0] * 3, **options}
    return DPTSegmenter(backbone=backbone, head=head, **arguments).eval()


@pytest.mark.parametrize("size", [(13, 15), (14, 14), (3, 90), (100, 67), (1000, 667)])
def test_whole_images_of_any_size(size):
    """The network sees multiples of the patch, the output has the size of the input."""
    model = patch_segmenter()
    assert model([{"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8)}])[0]["sem_seg"].shape == (5, *size)


def test_of_two_multiples_as_near_the_larger_is_taken():
    """int(side / 14 + 0.5), as the published evaluation has it; Python rounds halves to even numbers."""
    for side in range(1, 700):
        expected = max(1, int(side / 14 + 0.5)) * 14
        assert fitted(torch.zeros(1, 1, side, 14), (side, 14), 14).shape[2:] == (expected, 14)


def test_images_are_resized_not_padded_to_multiples():
    model = patch_segmenter()
    pixels = torch.randint(0, 256, (3, 30, 47), dtype=torch.uint8)
    resized = F.interpolate(pixels[None] / 255.0, size=(28, 42), mode="bilinear")
    expected = F.interpolate(model.logits(resized, None), size=(30, 47), mode="bilinear").softmax(1)[0]
    assert torch.allclose(model([{"image": pixels}])[0]["sem_seg"], expected, atol=1e-5)
    other = torch.randint(0, 256, (3, 60, 20), dtype=torch.uint8)
    two = model([{"image": pixels}, {"image": other}])  # of a batch each on its own
    assert torch.allclose(two[0]["sem_seg"], expected, atol=1e-5)
    assert torch.allclose(two[1]["sem_seg"], model([{"image": other}])[0]["sem_seg"], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(90, 130), (28, 28), (20, 61)])
def test_windows_of_a_network_that_sees_single_pixels_give_the_whole_image(height, width):
    """1 x 1 patches and no context: windows may change nothing, and their weights must sum to 1 up to the border."""

    class Pixels(torch.nn.Module):
        size_divisibility = 1

        def forward(self, images):
            return images

    class Head(torch.nn.Module):
        def features(self, maps):
            return maps

        def classify(self, maps):
            return torch.cat([maps, maps.sum(1, keepdim=True), torch.zeros_like(maps[:, :1])], 1)

    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    results = []
    for window in (0, 28):
        model = patch_segmenter(read_out=ReadOut(panoptic=False, window=window, window_stride=18))
        model.backbone, model.head = Pixels(), Head()
        model.feature_dropout = False
        results.append(model([{"image": pixels}])[0]["sem_seg"])
    assert torch.allclose(*results, atol=1e-5)
    assert torch.allclose(results[1].sum(0), torch.ones(height, width), atol=1e-5)


def test_dropped_channels_of_two_views_complement_each_other():
    maps = [torch.ones(5, 6 + i, 2, 2) for i in range(4)]
    for _ in range(10):
        for level in channel_dropout(maps, 4, 2):
            assert (level[0] == 1).all()  # labelled
            assert torch.equal(level[1:3] + level[3:5], torch.full_like(level[1:3], 2.0))
            changed = [bool((level[i] != 1).any()) for i in (1, 2)]
            assert sum(changed) == 1  # of two images one is left whole
            assert set(level[1 + changed.index(True)].unique().tolist()) <= {0.0, 2.0}  # lost or doubled


def test_maps_of_one_width_lose_the_same_channels():
    """UniMatch V2 draws once for the four blocks of a ViT; the stages of a pyramid have channels of their own."""
    same = channel_dropout([torch.ones(4, 2000, 1, 1)] * 4, 4, 2)
    assert 900 < (same[0] == 0)[:2].sum() < 1100  # half of the channels of one of two images
    assert all(torch.equal(x, same[0]) for x in same)


def test_a_vit_loses_channels_of_its_tokens_before_they_are_reassembled():
    """So that a dropped channel changes all channels of a level, and the bias of the projections stays."""
    backbone = TimmBackbone("vit_tiny_patch16_224", layers=(2, 5, 8, 11), channels=(4, 5, 6, 7)).eval()
    images = torch.randn(5, 3, 32, 32)
    seen = []
    backbone.pyramid.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        whole, dropped = backbone(images), pyramid_of(backbone, images, 4, 2)
    plain, changed = seen
    factors = [y / x for x, y in zip(plain, changed, strict=True)]
    assert all(torch.allclose(f, factors[0], atol=1e-4) for f in factors)  # the same in the four blocks
    assert set(factors[0].round(decimals=3).unique().tolist()) == {0.0, 1.0, 2.0}
    assert torch.allclose(factors[0][1:3] + factors[0][3:], torch.tensor(2.0), atol=1e-4)
    for name, level in backbone.pyramid(changed).items():
        assert torch.equal(level, dropped[name])
        assert torch.allclose(level[0], whole[name][0], atol=1e-5)


def test_other_backbones_lose_channels_of_their_levels():
    class Levels(torch.nn.Module):
        def forward(self, images):
            return {name: torch.ones(len(images), 6 + i, 2, 2) for i, name in enumerate(LEVELS)}

    result = pyramid_of(Levels(), torch.zeros(4, 3, 8, 8), 2, 1)
    assert list(result) == list(LEVELS)
    assert all((level[:2] == 1).all() and (level[2:] != 1).any() for level in result.values())
    assert all((level == 1).all() for level in pyramid_of(Levels(), torch.zeros(4, 3, 8, 8), 0, 1).values())


@pytest.mark.parametrize(("patch", "side"), [(14, 70), (16, 80)])
def test_reassembled_levels_have_four_strides(patch, side):
    """5 x 5 tokens: 20, 10, 5 and 3 (half of 5, rounded up)."""
    levels = Reassemble(12, (4, 5, 6, 7), patch)([torch.randn(1, 12, side // patch, side // patch) for _ in range(4)])
    assert {n: tuple(x.shape[1:]) for n, x in levels.items()} == {
        "res2": (4, 20, 20), "res3": (5, 10, 10), "res4": (6, 5, 5), "res5": (7, 3, 3),
    }  # fmt: skip
    shapes = Reassemble(12, (4, 5, 6, 7), patch).output_shape()
    assert shapes["res4"] == ShapeSpec(channels=6, stride=patch)


def test_layers_of_a_vit_are_its_own_normalised_tokens(tmp_path):
    """Against timm's model, whose weights come from a file as they are published, without "model." before the names."""
    torch.manual_seed(3)
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    torch.save(whole.state_dict(), tmp_path / "vit.pth")
    arguments = {"weights": str(tmp_path / "vit.pth"), "layers": (2, 5, 8, 11), "channels": (4, 5, 6, 7)}
    backbone = TimmBackbone("vit_tiny_patch16_224", **arguments).eval()
    images = torch.randn(1, 3, 64, 96)
    maps = []
    x = whole.norm_pre(whole.patch_drop(whole._pos_embed(whole.patch_embed(images))))
    for i, block in enumerate(whole.blocks):
        x = block(x)
        if i in (2, 5, 8, 11):
            maps.append(whole.norm(x)[:, 1:].transpose(1, 2).reshape(1, 192, 4, 6))
    expected = backbone.pyramid(maps)
    for name, level in backbone(images).items():
        assert torch.allclose(level, expected[name], atol=1e-5), name
    assert backbone.size_divisibility == 16


def test_checkpointed_blocks_give_the_same_gradients():
    gradients = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        backbone = TimmBackbone(
            "vit_tiny_patch16_224", layers=(2, 5, 8, 11), channels=(4, 4, 4, 4), checkpoint=checkpoint
        )
        calls = []
        backbone.train().model.model.blocks[3].norm1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        sum(x.sum() for x in backbone(torch.ones(1, 3, 32, 32)).values()).backward()
        assert len(calls) == 1 + checkpoint
        gradients.append([p.grad for p in backbone.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True) if a is not None)


def test_the_loss_of_labelled_images_can_take_hard_pixels_alone():
    logits, target = 3 * torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4))
    losses = F.cross_entropy(logits, target, reduction="none").flatten()
    of_all, of_hard = (patch_segmenter(hard_pixels=n, hard_below=0.0).label_loss(logits, target) for n in (0, 3))
    assert torch.allclose(of_all, losses.mean())
    assert torch.allclose(of_hard, losses.topk(6).values.mean())
