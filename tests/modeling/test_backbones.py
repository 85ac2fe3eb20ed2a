"""Backbones: strides, freezing, dense features, weights."""

from __future__ import annotations

import json
import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_backbone
from timm.models import register_model
from timm.models.eva import Eva

from dearli_d2.config import get_config
from dearli_d2.errors import ConfigError, WeightsError
from dearli_d2.modeling.backbone.open_clip import (
    OpenCLIPConvNeXt,
    OpenCLIPEVA,
    OpenCLIPViT,
    build_clip,
    build_frozen_clip,
)
from dearli_d2.modeling.backbone.timm import TimmBackbone
from dearli_d2.rehearsal import LiveBytes
from tests.conftest import REPO

TINY_VIT = """{"embed_dim": 32, "vision_cfg": {"image_size": 64, "layers": 2, "width": 48, "head_width": 16, "patch_size": 16},
"text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}}"""


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "tests-tiny-vit.json"
    path.write_text(TINY_VIT)
    torch.manual_seed(0)
    return OpenCLIPViT(str(path), "", frozen=True, pyramid_dim=24)


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("resnet18", 64),
        ("convnext_atto", 64),
        ("tf_efficientnet_lite0", 64),
        ("swin_tiny_patch4_window7_224", 224),
        ("vit_tiny_patch16_224", 224),
    ],
)
def test_timm_features_have_the_promised_channels_and_strides(arch, size):
    backbone = TimmBackbone(arch).eval()
    features = backbone(torch.randn(1, 3, size, size))
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for name, shape in backbone.output_shape().items():
        assert features[name].shape == (1, shape.channels, size // shape.stride, size // shape.stride)
    assert [s.stride for s in backbone.output_shape().values()] == [4, 8, 16, 32]


def test_plain_vit_takes_other_sizes():
    backbone = TimmBackbone("vit_tiny_patch16_224", pyramid_dim=32).eval()
    features = backbone(torch.randn(1, 3, 64, 96))
    assert features["res2"].shape == (1, 32, 16, 24)
    assert backbone.size_divisibility == 32


def test_dinov2_patch_14_pyramid():
    backbone = TimmBackbone("vit_small_patch14_dinov2.lvd142m", pyramid_dim=16).eval()
    assert backbone.size_divisibility == 28
    features = backbone(torch.randn(1, 3, 56, 84))
    assert features["res4"].shape == (1, 16, 4, 6)
    assert features["res5"].shape == (1, 16, 2, 3)


def cubic_weights(new: int, old: int) -> torch.Tensor:
    """(new, old) weights of bicubic interpolation, a = -0.75, with the scale (new + 0.1) / old and repeated borders."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        source = (row + 0.5) * old / (new + 0.1) - 0.5
        first = math.floor(source)
        for cell in range(first - 1, first + 3):
            t = abs(source - cell)
            near, far = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            weights[row, min(max(cell, 0), old - 1)] += near if t <= 1 else far
    return weights


@pytest.mark.parametrize("layers", [(), (2, 5, 8, 11)])
def test_dinov2_resizes_its_positions_as_its_authors_do(layers):
    """With the offset of a tenth of a cell and without antialiasing; at the native size nothing is resized."""
    vit = deepcopy(
        TimmBackbone("vit_small_patch14_dinov2", layers=layers, channels=(8,) * 4, pyramid_dim=8).model.model
    )
    for height, width in ((57, 40), (20, 37)):
        native = vit.pos_embed[0, 1:].detach().double().view(37, 37, -1)
        expected = torch.einsum("ah,bw,hwc->abc", cubic_weights(height, 37), cubic_weights(width, 37), native)
        found = vit._pos_embed(torch.zeros(1, height, width, 384))[0]
        assert torch.allclose(found[1:].view(height, width, -1).double(), expected, atol=1e-5)
        assert torch.allclose(found[0], (vit.cls_token[0, 0] + vit.pos_embed[0, 0]))
    assert torch.equal(vit._pos_embed(torch.zeros(1, 37, 37, 384))[0, 1:], vit.pos_embed[0, 1:])


@pytest.mark.parametrize("arch", ["resnet18", "vit_tiny_patch16_224"])
def test_frozen_timm_has_no_gradient_and_no_state_change(arch):
    backbone = TimmBackbone(arch, frozen=True).train()
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    features = backbone(torch.randn(2, 3, 224, 224))
    if backbone.pyramid is not None:  # the new layers learn
        sum(f.sum() for f in features.values()).backward()
        assert all(p.grad is not None for p in backbone.pyramid.parameters())
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())


@pytest.mark.parametrize("arch", ["resnet18", "tf_efficientnet_lite0"])
def test_frozen_batch_norms_keep_statistics_and_weights_and_change_no_output(arch):
    torch.manual_seed(0)
    plain = TimmBackbone(arch)
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.normal_(module.bias)
    frozen = TimmBackbone(arch, freeze_norm=True)
    frozen.load_state_dict({k: v for k, v in plain.state_dict().items() if "num_batches" not in k})
    images, before = torch.randn(2, 3, 64, 64), {k: v.clone() for k, v in frozen.state_dict().items()}
    trained, expected = frozen.train()(images), plain.eval()(images)
    assert all(torch.allclose(trained[k], expected[k], atol=1e-4) for k in expected)
    trained["res5"].sum().backward()
    norms = {k for k in before if "running" in k}
    assert norms
    assert all(torch.equal(frozen.state_dict()[k], before[k]) for k in norms)
    assert {n for n, _ in frozen.named_parameters()} == {n for n, p in plain.named_parameters() if p.dim() > 1}


def test_frozen_clip_has_no_gradient_and_stays_in_eval_mode():
    backbone = OpenCLIPConvNeXt("miniworld-convnext", "shipped", frozen=True)
    backbone.train()
    assert not any(m.training for m in backbone.clip_model.modules())
    features = backbone(torch.randn(1, 3, 64, 64, requires_grad=True))
    assert not any(f.requires_grad for f in features.values())


def test_fine_tuned_clip_learns_in_the_image_tower_only():
    backbone = OpenCLIPConvNeXt("miniworld-convnext", "shipped", frozen=False).train()
    backbone(torch.randn(1, 3, 64, 64))["clip_vis_dense"].sum().backward()
    assert any(p.grad is not None for p in backbone.clip_model.visual.parameters())
    assert not any(p.requires_grad for p in backbone.clip_model.transformer.parameters())
    assert not backbone.clip_model.transformer.training


def test_clip_dense_features_pool_to_clips_own_image_embedding():
    """A mask that covers everything gives what open_clip computes for the image."""
    from dearli_d2.modeling.clip.ensembling import mask_pool

    backbone = OpenCLIPConvNeXt("miniworld-convnext", "shipped").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        dense = backbone(images)["clip_vis_dense"]
        pooled = backbone.embed_pooled(mask_pool(dense, torch.ones(2, 1, 16, 16)))[:, 0]
        trunk = backbone.clip_model.visual.trunk
        direct = trunk.forward_features(images).mean((2, 3))[..., None, None]
        expected = F.normalize(backbone.clip_model.visual.head(trunk.forward_head(direct)), dim=-1)
    assert torch.allclose(pooled, expected, atol=1e-5)


def test_vit_tokens_equal_open_clips(vit):
    """At the native size the tokens behind the dense features are open_clip's: same pooled class embedding."""
    images = torch.randn(2, 3, 64, 64)
    vit.eval()
    with torch.no_grad():
        encoded = vit.encode(images)
        visual = vit.clip_model.visual
        seen = []
        hook = visual.transformer.resblocks[-1].register_forward_hook(lambda block, inputs, output: seen.append(output))
        whole = F.normalize(visual(images), dim=-1)
    hook.remove()
    theirs = seen[0][:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    assert torch.allclose(encoded["tokens"], theirs, atol=1e-5)
    assert encoded["clip_vis_dense"].shape == (2, 32, 4, 4)
    assert torch.allclose(vit.embed_image(encoded), whole, atol=1e-5)


@pytest.fixture(scope="module")
def eva(tmp_path_factory):
    """EVA02's architecture with two narrow blocks."""

    @register_model
    def eva02_for_tests(pretrained: bool = False, **kwargs) -> Eva:
        for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            kwargs.pop(name, None)
        return Eva(
            img_size=56, patch_size=14, embed_dim=48, depth=2, num_heads=4, qkv_fused=False, mlp_ratio=2, swiglu_mlp=True,
            scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(4, 4), **kwargs,
        )  # fmt: skip

    path = tmp_path_factory.mktemp("eva") / "eva-for-tests.json"
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 56, "timm_model_name": "eva02_for_tests", "timm_pool": "token", "timm_proj": None},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    }
    path.write_text(json.dumps(config))
    return OpenCLIPEVA(str(path), "", frozen=False, pyramid_dim=24).eval()


@pytest.fixture(params=["vit", "eva", "convnext"])
def fine_tuned(request):
    """A tower that trains, with a dropout inside of its last block."""
    if request.param == "convnext":
        backbone = OpenCLIPConvNeXt("miniworld-convnext", "shipped", frozen=False)
    else:
        backbone = deepcopy(request.getfixturevalue(request.param))
    backbone.frozen = False
    backbone._choose_trainable()
    last = backbone._parts(backbone.clip_model.visual)[0][-1]
    block = last.blocks[-1] if request.param == "convnext" else last
    block.mlp = torch.nn.Sequential(block.mlp, torch.nn.Dropout(0.5))
    return backbone.train()


def step_of(backbone, module=None, autocast=False):
    """Gradients of all trained parameters, and the most bytes that a step needs."""
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(3))
    backbone.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    with LiveBytes() as memory:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            features = (module or backbone)(images)
            loss = sum(f.float().square().mean() for f in features.values())
        loss.backward()
    return {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}, memory.peak


@pytest.mark.parametrize("autocast", [False, True])
def test_a_tower_that_computes_its_blocks_again_has_the_same_gradients_in_less_memory(fine_tuned, autocast):
    expected, much = step_of(fine_tuned, autocast=autocast)
    fine_tuned.checkpoint = True
    found, little = step_of(fine_tuned, autocast=autocast)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    assert little < 0.85 * much


def test_blocks_are_computed_again_in_data_parallel_training(fine_tuned):
    expected, _ = step_of(fine_tuned)
    fine_tuned.checkpoint = True
    unused = {n: p for n, p in fine_tuned.named_parameters() if p.requires_grad and n not in expected}
    for parameter in unused.values():
        parameter.requires_grad_(False)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        found, _ = step_of(fine_tuned, torch.nn.parallel.DistributedDataParallel(fine_tuned))
    finally:
        torch.distributed.destroy_process_group()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_batch_norms_that_would_count_a_batch_twice_are_refused():
    with pytest.raises(ConfigError, match="has batch norms.*FREEZE_NORM"):
        TimmBackbone("resnet18", checkpoint=True)
    TimmBackbone("resnet18", checkpoint=True, freeze_norm=True)


@pytest.mark.parametrize("untrained", [("FREEZE", "True"), ("TRAINABLE_BLOCKS", "0")])
def test_blocks_that_are_not_trained_are_not_computed_again(untrained):
    options = ["MODEL.BACKBONE.CHECKPOINT_BLOCKS", "True", f"MODEL.BACKBONE.{untrained[0]}", untrained[1]]
    with pytest.raises(ConfigError, match="CHECKPOINT_BLOCKS saves nothing"):
        get_config(REPO / "configs/miniworld/hvl.yaml", [*options, "MODEL.HVL.VL_WEIGHT", "0.0"])


def test_eva_tokens_equal_open_clips(eva):
    images, visual = torch.randn(2, 3, 56, 56), eva.clip_model.visual
    with torch.no_grad():
        encoded = eva.encode(images)
        whole = F.normalize(visual(images), dim=-1)
        theirs = visual.trunk.forward_intermediates(images, indices=[1], norm=False, intermediates_only=True)[0]
    assert torch.allclose(eva.embed_image(encoded), whole, atol=1e-5)
    assert torch.allclose(encoded["tokens"], theirs, atol=1e-5)
    assert encoded["clip_vis_dense"].shape == (2, 32, 4, 4)


def test_eva_takes_other_sizes_and_learns(eva):
    features = eva(torch.randn(1, 3, 112, 84))
    assert features["clip_vis_dense"].shape == (1, 32, 8, 6)
    assert features["res3"].shape == (1, 24, 16, 12)
    assert eva.size_divisibility == 28
    (features["res5"].sum() + features["clip_vis_dense"].sum()).backward()
    used = [p.grad is not None for n, p in eva.clip_model.visual.named_parameters() if "k_proj" not in n]
    assert all(used)
    assert eva.embedding_dim == 32


def test_dense_embeddings_are_those_of_the_cells():
    backbone = OpenCLIPConvNeXt("miniworld-convnext", "shipped").eval()
    features = backbone(torch.randn(2, 3, 64, 64))
    dense = backbone.embed_dense(features)
    one = backbone.embed_pooled(features["clip_vis_dense"][:, :, 3, 5][:, None])[:, 0]
    assert torch.allclose(dense[:, :, 3, 5], one, atol=1e-6)
    assert torch.allclose(dense.norm(dim=1), torch.ones(2, *dense.shape[2:]), atol=1e-5)


def test_a_frozen_copy_of_the_tower_stands_for_the_start_weights():
    backbone = OpenCLIPConvNeXt("miniworld-convnext", "shipped", frozen=False).eval()
    copy, images = deepcopy(backbone.clip_model.visual), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone.embed_image(backbone.encode(images))
        for parameter in backbone.clip_model.visual.parameters():
            parameter.mul_(1.1)
        assert torch.equal(backbone.embed_image(backbone.encode(images, copy), copy), before)
        assert not torch.allclose(backbone.embed_image(backbone.encode(images)), before, atol=1e-3)


@pytest.mark.parametrize(
    ("arch", "kind"), [("RN50", None), ("ViT-B-32", OpenCLIPViT), ("miniworld-convnext", OpenCLIPConvNeXt)]
)
def test_frozen_clip_beside_a_backbone_is_of_the_right_kind(arch, kind):
    if kind is None:
        with pytest.raises(ConfigError):
            build_frozen_clip(arch, "")
        return
    model = build_frozen_clip(arch, "")
    assert isinstance(model, kind)
    assert not any(p.requires_grad for p in model.parameters())


def test_vit_value_path_lets_no_token_see_another(vit):
    """Changing what enters the last block at one token changes the dense features of that token alone."""
    visual = vit.clip_model.visual
    last = visual.transformer.resblocks[-1]
    x = torch.randn(1, 17, 48)
    y = x.clone()
    y[0, 5] = torch.randn(48)
    from dearli_d2.modeling.backbone.open_clip import _value_path

    with torch.no_grad():
        difference = (_value_path(last.attn, last.ln_1(x)) - _value_path(last.attn, last.ln_1(y))).abs().sum(-1)[0]
    assert difference[5] > 1e-3
    assert difference[torch.arange(17) != 5].max() == 0


def test_vit_dense_features_are_maskclips(vit):
    """The published form for ViTs: the whole last block, in which each token attends to itself alone."""
    images, visual = torch.randn(2, 3, 64, 64), vit.clip_model.visual
    *blocks, last = visual.transformer.resblocks
    alone = torch.full((17, 17), -torch.inf).fill_diagonal_(0)
    with torch.no_grad():
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(2, 1, -1), x], 1) + visual.positional_embedding
        x = visual.ln_pre(x)
        for block in blocks:
            x = block(x)
        expected = visual.ln_post(last(x, attn_mask=alone))[:, 1:] @ visual.proj
        dense = vit.encode(images)["clip_vis_dense"].flatten(2).transpose(1, 2)
    assert torch.allclose(dense, expected, atol=1e-5)


def test_eva_dense_features_are_maskclips(eva):
    images, trunk = torch.randn(2, 3, 56, 56), eva.clip_model.visual.trunk
    *blocks, last = trunk.blocks
    with torch.no_grad():
        x, rope = trunk._pos_embed(trunk.patch_embed(images))
        for block in blocks:
            x = block(x, rope=rope)
        alone = last(x, rope=rope, attn_mask=torch.eye(17, dtype=torch.bool))
        expected = trunk.head(trunk.fc_norm(trunk.norm(alone)[:, 1:]))
        dense = eva.encode(images)["clip_vis_dense"].flatten(2).transpose(1, 2)
    assert torch.allclose(dense, expected, atol=1e-5)


def test_vit_takes_other_sizes(vit):
    features = vit(torch.randn(1, 3, 96, 64))
    assert features["clip_vis_dense"].shape == (1, 32, 6, 4)
    assert features["res2"].shape == (1, 24, 24, 16)
    assert features["res2"].requires_grad  # pyramid
    assert not features["clip_vis_dense"].requires_grad


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: TimmBackbone("resnet51x"), ConfigError, "timm has no model"),
        (lambda: TimmBackbone("resnet18", "weights/none.pth"), WeightsError, "is no file"),
        (lambda: TimmBackbone("resnet18", "package:efficientnet_lite0"), ConfigError, "fits MODEL.BACKBONE.ARCH"),
        (lambda: TimmBackbone("resnet18", "package:nothing"), ConfigError, "no package weights"),
        (lambda: build_clip("convnext_base_w_320", "no_such_tag"), WeightsError, "tags: laion"),
        (lambda: build_clip("no-such-model", ""), ConfigError, "open_clip has no model"),
        (lambda: build_clip("missing.json", ""), ConfigError, "no file"),
    ],
)
def test_weights_that_cannot_be_had_are_errors(build, error, words):
    with pytest.raises(error, match=words):
        build()


def test_download_without_network_is_an_error_that_says_what_to_do():
    with pytest.raises(WeightsError, match="cannot be reached.*set MODEL.BACKBONE.WEIGHTS to the file"):
        TimmBackbone("resnet18", "pretrained")


def test_local_classification_weights_fill_every_feature_parameter(tmp_path):
    import timm

    torch.manual_seed(1)
    whole = timm.create_model("convnext_atto")
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    backbone = TimmBackbone("convnext_atto", str(tmp_path / "w.pth")).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.eval().forward_intermediates(images, intermediates_only=True)
        ours = backbone(images)
    for a, b in zip(ours.values(), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    with pytest.raises(WeightsError, match="does not fit this backbone"):
        TimmBackbone("resnet18", str(tmp_path / "w.pth"))


def test_a_swin_gives_four_levels_of_any_image():
    cfg = get_config(
        REPO / "configs/coco_panoptic/m2f_swin_t.yaml", ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE", "True"]
    )
    swin = build_backbone(cfg)
    assert not any(p.requires_grad for p in swin.parameters())
    with torch.no_grad():
        levels = swin(torch.randn(2, 3, 64, 96))  # its last maps are smaller than a window
    for index, (name, shape) in enumerate(swin.output_shape().items()):
        assert name == f"res{index + 2}"
        assert levels[name].shape == (2, 96 * 2**index, 64 // shape.stride, 96 // shape.stride)
        assert levels[name].mean(1).abs().max() < 1e-4  # behind a norm


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.BACKBONE.ARCH", "swin_huge"], "there is no Swin 'swin_huge'; known: swin_tiny_patch4_window7_224"),
        (
            ["MODEL.BACKBONE.WEIGHTS", "swin.pth"],
            "WEIGHTS is not read by MODEL.BACKBONE.NAME SwinBackbone: .* MODEL.WEIGHTS",
        ),
    ],
)
def test_a_swin_refuses_what_it_does_not_read(overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_backbone(get_config(REPO / "configs/coco_panoptic/m2f_swin_t.yaml", ["MODEL.DEVICE", "cpu", *overrides]))
