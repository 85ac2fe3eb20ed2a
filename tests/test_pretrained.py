"""Normalisation, activation and size follow from the weights' published tag; what contradicts it is refused."""

from __future__ import annotations

import json
import re

import open_clip
import pytest
import timm
import torch
from torch import nn

from dearli_d2 import Predictor
from dearli_d2.checkpoint import load_weights
from dearli_d2.config import get_config
from dearli_d2.engine.teacher import EMATeacher
from dearli_d2.errors import ConfigError, WeightsError
from dearli_d2.modeling import build_model
from dearli_d2.modeling.backbone.clip_model import build_clip
from dearli_d2.modeling.backbone.open_clip import OpenCLIPViT, build_frozen_clip
from dearli_d2.pretrained import clip_facts, facts_of, text_facts, timm_facts
from dearli_d2.runs import evaluate_weights
from tests.experiments import CONFIGS, EXPERIMENTS, name_of

# as published: mean and deviation of 0..1 RGB, QuickGELU
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
PUBLISHED = {
    ("ViT-B-16", "openai"): (*CLIP, True),
    ("EVA02-L-14", "merged2b_s4b_b131k"): (*CLIP, False),
    ("convnext_base_w_320", "laion_aesthetic_s13b_b82k_augreg"): (*CLIP, False),
    ("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup"): (*CLIP, False),
    ("miniworld-convnext", "shipped"): (*CLIP, False),
    ("vit_base_patch16_224", "pretrained"): (*HALF, False),
    ("vit_small_patch14_dinov2", "pretrained"): (*IMAGENET, False),
    ("vit_base_patch14_dinov2", "pretrained"): (*IMAGENET, False),
    ("vit_large_patch14_dinov2", "pretrained"): (*IMAGENET, False),
    ("vit_large_patch14_reg4_dinov2", "pretrained"): (*IMAGENET, False),
    ("convnext_base.fb_in1k", "pretrained"): (*IMAGENET, False),
    ("resnet101.tv_in1k", "pretrained"): (*IMAGENET, False),
    ("resnet50.tv_in1k", "pretrained"): (*IMAGENET, False),
    ("tf_efficientnet_lite0", "package:efficientnet_lite0"): (*HALF, False),
    ("tf_efficientnet_lite2", "package:efficientnet_lite2"): (*HALF, False),
}


def close(values, published) -> bool:
    return all(abs(a - 255 * b) < 1e-4 for a, b in zip(values, published, strict=True))


@pytest.mark.parametrize("path", [p for p in EXPERIMENTS if p.parent.name != "custom"], ids=name_of)
def test_every_config_normalises_and_activates_as_its_weights_were_trained(path):
    cfg = get_config(path, ["MODEL.DEVICE", "cpu"])
    backbones = [(cfg.MODEL, cfg.MODEL.BACKBONE)]
    if cfg.MODEL.META_ARCHITECTURE == "SegKC":
        backbones.append((cfg.MODEL.SENIOR, cfg.MODEL.SENIOR.BACKBONE))
    for section, backbone in backbones:
        if not backbone.WEIGHTS:
            continue
        mean, std, quick_gelu = PUBLISHED[backbone.ARCH, backbone.WEIGHTS]
        assert close(section.PIXEL_MEAN, mean)
        assert close(section.PIXEL_STD, std)
        assert facts_of(backbone).quick_gelu == quick_gelu
        if backbone.NAME == "TimmBackbone":
            table = timm.models.get_pretrained_cfg(backbone.ARCH)
            assert (tuple(table.mean), tuple(table.std)) == (mean, std)
        elif backbone.WEIGHTS != "shipped":
            table = open_clip.get_pretrained_cfg(backbone.ARCH, backbone.WEIGHTS)
            assert (table["mean"], table["std"], table.get("quick_gelu", False)) == (mean, std, quick_gelu)
    text = cfg.MODEL.TEXT
    if text.ENCODER:
        mean, std, quick_gelu = PUBLISHED[text.ENCODER, text.WEIGHTS]
        facts = text_facts(text)
        assert close(facts.mean, mean)
        assert close(facts.std, std)
        assert facts.quick_gelu == quick_gelu


CITYSCAPES = "gta5_to_cityscapes/consistency.yaml"


@pytest.mark.parametrize(
    ("file", "overrides", "words"),
    [
        (CITYSCAPES, ["MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]"], "PIXEL_MEAN .* expect .127.5, 127.5, 127.5."),
        (CITYSCAPES, ["MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]"], "PIXEL_STD .* expect .127.5, 127.5, 127.5."),
        (
            "ade20k/dear_convnext_b.yaml",
            ["MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]"],
            "expect .122.771, 116.746, 104.094.; leave the key out",
        ),
        (
            "coco_panoptic/m2f_r50.yaml",
            ["MODEL.WEIGHTS", "R-50.pkl", "MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]"],
            "expect .123.675, 116.28, 103.53.",
        ),
        (
            "pascal_voc/segkc_b_s.yaml",
            ["MODEL.SENIOR.PIXEL_STD", "[1, 1, 1]"],
            "MODEL.SENIOR.PIXEL_STD .* expect .58.395, 57.12, 57.375.",
        ),
        (
            "ade20k/hvl_vit_b.yaml",
            ["MODEL.BACKBONE.ARCH", "ViT-L-14", "MODEL.BACKBONE.WEIGHTS", "laion2b_s32b_b82k",
             "MODEL.PIXEL_MEAN", "[122.7709383, 116.7460125, 104.09373615]"],
            "expect .127.5, 127.5, 127.5.",
        ),
        (
            "ade20k/hvl_vit_b.yaml",
            ["MODEL.BACKBONE.ARCH", "ViT-B-16-quickgelu", "MODEL.BACKBONE.TAG", "laion2b_s34b_b88k",
             "MODEL.BACKBONE.WEIGHTS", "vit.pt"],
            "BACKBONE.TAG: 'laion2b_s34b_b88k' .* trained with GELU, use ViT-B-16$|trained with GELU, use ViT-B-16;",
        ),
        (CITYSCAPES, ["MODEL.BACKBONE.ARCH", "vit_base_patch16_224.no_such"], "MODEL.BACKBONE.ARCH: .*no_such"),
        (CITYSCAPES, ["MODEL.BACKBONE.TAG", "mae"], "is named by|MODEL.BACKBONE.ARCH vit_base_patch16_224.mae"),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_its_weights_is_refused_with_the_right_value(file, overrides, words):
    with pytest.raises(ConfigError, match=words):
        get_config(CONFIGS / file, ["MODEL.DEVICE", "cpu", *overrides])


def test_normalisation_follows_another_backbone_without_a_word():
    options = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.ARCH", "ViT-L-14", "MODEL.BACKBONE.WEIGHTS", "laion2b_s32b_b82k"]
    cfg = get_config(CONFIGS / "ade20k" / "hvl_vit_b.yaml", options)
    assert close(cfg.MODEL.PIXEL_MEAN, HALF[0])
    assert close(cfg.MODEL.PIXEL_STD, HALF[1])


# ------------------------------------------------------------------------------------------ files of weights


def test_a_file_needs_a_tag_only_where_the_tags_of_its_architecture_differ():
    with pytest.raises(ConfigError, match=re.escape("set MODEL.BACKBONE.TAG")) as error:
        clip_facts("ViT-B-16", "/weights/ViT-B-16.pt")
    assert "QuickGELU, mean [122.771, 116.746, 104.094]: openai" in str(error.value)
    assert clip_facts("ViT-B-16", "/weights/ViT-B-16.pt", "openai").quick_gelu
    assert not clip_facts("ViT-B-16", "/weights/laion.pt", "laion2b_s34b_b88k").quick_gelu
    assert clip_facts("ViT-B-16-quickgelu", "/weights/ViT-B-16.pt").quick_gelu
    assert close(clip_facts("convnext_base_w_320", "/weights/convnext.bin").mean, CLIP[0])
    assert close(timm_facts("vit_small_patch14_dinov2", "/weights/dinov2_vits14_pretrain.pth").mean, IMAGENET[0])
    with pytest.raises(ConfigError, match="set MODEL.BACKBONE.TAG to the tag of vit_base_patch16_224"):
        timm_facts("vit_base_patch16_224", "/weights/vit.pth")
    assert close(timm_facts("vit_base_patch16_224", "/weights/vit.pth", "mae").mean, IMAGENET[0])
    assert close(timm_facts("vit_base_patch16_224.augreg_in21k", "/weights/vit.pth").mean, HALF[0])


def test_the_encoder_beside_a_backbone_is_asked_for_by_its_own_keys():
    cfg = get_config(CONFIGS / "coco_stuff_zero_shot" / "split_matching_r50.yaml", ["MODEL.DEVICE", "cpu"]).MODEL.TEXT
    cfg.defrost()
    cfg.WEIGHTS = "/weights/ViT-B-16.pt"
    with pytest.raises(ConfigError, match="set MODEL.TEXT.TAG"):
        text_facts(cfg)
    with pytest.raises(ConfigError, match="set MODEL.TEXT.TAG"):
        build_frozen_clip("ViT-B-16", "/weights/ViT-B-16.pt")


def test_weights_of_ones_own_take_the_normalisation_of_the_config():
    own = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.WEIGHTS", "/weights/mine.pth", "MODEL.BACKBONE.TAG", "own"]
    path = CONFIGS / CITYSCAPES
    with pytest.raises(ConfigError, match="MODEL.PIXEL_MEAN must be set"):
        get_config(path, own)
    cfg = get_config(path, [*own, "MODEL.PIXEL_MEAN", "[1, 2, 3]", "MODEL.PIXEL_STD", "[4, 5, 6]"])
    assert list(cfg.MODEL.PIXEL_MEAN) == [1, 2, 3]


# ------------------------------------------------------------------------------------------ the network itself


class Quick(nn.Module):
    """GELU as OpenAI's CLIP approximates it."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def with_quick_gelu(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GELU):
                setattr(module, name, Quick())
    return model


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A tiny ViT in open_clip's tables, with a tag of either activation, and a file of its weights."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    name = "tests-published-vit"
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    entry = dict(open_clip.get_pretrained_cfg("ViT-B-16", "openai"), hf_hub="", url="")
    other = {**entry, "quick_gelu": False, "mean": (0.5, 0.5, 0.5)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {"quick": entry, "plain": other})
    model = open_clip.create_model(name)
    for parameter in model.parameters():  # far enough from zero for the activations to differ
        nn.init.normal_(parameter, std=0.3)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    monkeypatch.setattr("dearli_d2.modeling.backbone.clip_model.fetch", lambda *a: tmp_path / "weights.pt")
    return name, tmp_path / "weights.pt", model.eval()


@pytest.mark.parametrize("downloaded", [True, False])
@pytest.mark.parametrize("tag", ["quick", "plain"])
def test_both_towers_have_the_activation_of_the_tag(published, tag, downloaded):
    name, path, model = published
    built = (build_clip(name, tag) if downloaded else build_clip(name, str(path), tag)).eval()
    expected = with_quick_gelu(model) if tag == "quick" else model
    images, tokens = torch.randn(2, 3, 32, 32), open_clip.get_tokenizer(name)(["a cat", "a red car"])
    with torch.no_grad():
        assert torch.allclose(built.encode_image(images), expected.encode_image(images), atol=1e-5)
        assert torch.allclose(built.encode_text(tokens), expected.encode_text(tokens), atol=1e-5)
        assert not torch.allclose(model.encode_text(tokens), with_quick_gelu(model).encode_text(tokens), atol=1e-3) or (
            tag == "quick"
        )


def test_the_frozen_encoder_carries_the_normalisation_of_its_tag(published):
    name, path, _ = published
    clip = build_frozen_clip(name, str(path), "plain")
    assert close(clip.mean, HALF[0])
    assert close(clip.std, CLIP[1])
    assert isinstance(clip, OpenCLIPViT)


def test_a_model_whose_weights_come_from_a_checkpoint_keeps_the_activation(published):
    """As evaluation, prediction and resuming build it."""
    name, _, _ = published
    options = (
        "MODEL.BACKBONE.NAME", "OpenCLIPViT", "MODEL.BACKBONE.ARCH", name, "MODEL.BACKBONE.WEIGHTS", "quick",
        "MODEL.BACKBONE.PYRAMID_DIM", "8", "MODEL.DEVICE", "cpu",
    )  # fmt: skip
    cfg = get_config(CONFIGS / "miniworld" / "m2f.yaml", options)
    for load in (True, False):
        blocks = build_model(cfg, load_backbone=load).backbone.clip_model
        for tower in (blocks.visual.transformer, blocks.transformer):
            assert type(tower.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_a_checkpoint_brings_the_encoder_too(published, mini_config):
    """The file that it was trained from need not be on the machine that predicts."""
    name, path, _ = published
    options = (
        "MODEL.TEXT.ENCODER",
        name,
        "MODEL.TEXT.WEIGHTS",
        str(path),
        "MODEL.TEXT.TAG",
        "quick",
        "MODEL.HVL.VL_WEIGHT",
        "0.0",
    )
    cfg = mini_config(*options, "MODEL.HVL.PROMPT_TOKENS", "2", file="hvl.yaml")
    trained = build_model(cfg)
    path.unlink()
    model = build_model(cfg, load_backbone=False)
    model.load_state_dict(trained.state_dict())
    assert type(model.language.clip_model.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert torch.equal(model.fixed_text(), trained.fixed_text())


def test_a_file_of_another_image_size_is_refused_in_one_line(published, tmp_path):
    name, path, _ = published
    state = torch.load(path)
    state["visual.positional_embedding"] = torch.zeros(10, 48)
    torch.save(state, tmp_path / "larger.pt")
    with pytest.raises(WeightsError, match=r"visual.positional_embedding, \(10, 48\) in the file, \(5, 48\)"):
        build_clip(name, str(tmp_path / "larger.pt"), "quick")


def test_the_senior_sees_images_as_its_own_weights_expect_them(mini_config):
    """The junior's are normalised otherwise."""
    overrides = "MODEL.PIXEL_MEAN", "[10, 20, 30]", "MODEL.PIXEL_STD", "[50, 60, 70]"
    model = build_model(mini_config(*overrides, file="segkc.yaml")).eval()
    pixels, seen = torch.rand(3, 64, 64) * 255, {}
    for name, part in (("junior", model.backbone), ("senior", model.senior.backbone)):
        part.register_forward_pre_hook(lambda module, args, name=name: seen.update({name: args[0][0]}))
    with torch.no_grad():
        model.both_logits(model.preprocess([{"image": pixels}]).tensor)
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in CLIP)
    assert torch.allclose(seen["senior"], (pixels - mean) / std, atol=1e-4)
    junior = (pixels - torch.tensor([10.0, 20, 30]).view(3, 1, 1)) / torch.tensor([50.0, 60, 70]).view(3, 1, 1)
    assert torch.allclose(seen["junior"], junior, atol=1e-4)


def test_crops_of_regions_have_the_size_that_the_encoder_was_trained_with(mini_config):
    with pytest.raises(ConfigError, match="CROP_SIZE is 224, .* trained with images of 128 pixels; set it to 128"):
        build_model(mini_config("MODEL.SPLIT.REGIONS.CROP_SIZE", "224", file="split_matching.yaml"))
    with pytest.raises(ConfigError, match="IMAGE_SIZE 132 is no multiple of 8"):
        build_model(mini_config("MODEL.SPLIT.REGIONS.IMAGE_SIZE", "132", file="split_matching.yaml"))


def test_a_checkpoint_of_other_normalisation_is_refused(mini_config, tmp_path):
    """As start weights, the teacher's too, in evaluation and in prediction."""
    path = tmp_path / "run.pth"
    here = "DATASETS.TEST", "('miniworld_val@n1',)", "MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path)
    own = "MODEL.BACKBONE.TAG", "own", "MODEL.PIXEL_MEAN", "[1, 2, 3]", "MODEL.PIXEL_STD", "[4, 5, 6]"
    then, now = mini_config(*own, *here, file="m2f.yaml"), mini_config(*here, file="m2f.yaml")
    model = build_model(now)
    taxonomy = model.taxonomy.to_json()
    torch.save({"model": model.state_dict(), "config": then.dump(), "taxonomy": taxonomy}, path)
    for read in (
        lambda: load_weights(model, path),
        lambda: EMATeacher(model).load_weights(path),
        lambda: evaluate_weights(now),
        lambda: Predictor(now, path),
    ):
        with pytest.raises(
            WeightsError, match=r"trained with MODEL.PIXEL_MEAN \[1.0, 2.0, 3.0\], this config has \[122"
        ):
            read()
    load_weights(build_model(then), path)
    Predictor(then, path)
