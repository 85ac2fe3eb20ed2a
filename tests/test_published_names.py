"""Published checkpoints load strictly: each name and shape of the file has its place in the model, and the other way round."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from dearli_d2 import checkpoint
from dearli_d2.cli import main
from dearli_d2.config import get_config
from dearli_d2.modeling import build_model
from dearli_d2.modeling.backbone.timm import TimmBackbone
from tests.published import random_weights, shapes_of

DINOV2_B = [
    "MODEL.BACKBONE.ARCH",
    "vit_base_patch14_dinov2",
    "MODEL.BACKBONE.LEVEL_DIMS",
    "(96,192,384,768)",
    "MODEL.DPT.DIM",
    "128",
]


@pytest.fixture(autouse=True)
def no_initialisation(monkeypatch):
    """Names and shapes are all that matters here, and drawing hundreds of millions of weights takes long."""
    for name in ("normal_", "trunc_normal_", "uniform_", "xavier_uniform_", "kaiming_uniform_", "kaiming_normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


def first_release(shapes):
    """The names of Mask2Former's published files: its own code renames them when it reads a file without versions."""
    renamed = {n.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): s for n, s in shapes.items()}
    return {n.replace("predictor.query_feat.", "predictor.static_query."): s for n, s in renamed.items()}


@pytest.mark.parametrize(
    ("config", "shapes", "count", "overrides"),
    [
        ("coco_panoptic/m2f_r50", shapes_of("mask2former_r50"), 557, []),
        ("ade20k/m2f_r50", first_release(shapes_of("mask2former_r50", 151)), 557, []),
        ("coco_panoptic/m2f_swin_t", first_release(shapes_of("mask2former_swin_t")), 481, []),
        ("coco_panoptic/m2f_swin_l", shapes_of("mask2former_swin_l"), 649, []),
        ("ade20k/m2f_swin_l", first_release(shapes_of("mask2former_swin_l", 151)), 649, []),
        ("ade20k/dearli_convnext_b", shapes_of("dearli_convnext_b"), 791, []),
        ("coco_panoptic/dear_convnext_l", shapes_of("dearli_convnext_l"), 841, []),
        ("ade20k/fc_clip_convnext_l", shapes_of("fc_clip_convnext_l"), 845, []),
        ("pascal_voc/unimatch_v2_s", shapes_of("unimatch_v2_small"), 232, []),
        ("pascal_voc/unimatch_v2_s", shapes_of("unimatch_v2_base"), 232, DINOV2_B),
        ("cityscapes/unimatch_v2_s", shapes_of("unimatch_v2_base", 19), 232, DINOV2_B),
        ("ade20k/unimatch_v2_s", shapes_of("unimatch_v2_base", 150), 232, DINOV2_B),
        ("coco_objects/unimatch_v2_s", shapes_of("unimatch_v2_base", 81), 232, DINOV2_B),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_every_published_name_has_its_place(repo, tmp_path, capsys, config, shapes, count, overrides):
    (tmp_path / "names.json").write_text(json.dumps(shapes))
    arguments = ["--config-file", str(repo / f"configs/{config}.yaml"), "--names", str(tmp_path / "names.json")]
    assert main(["checkpoint", "verify", *arguments, *overrides]) == 0
    assert f"{count} matched, 0 missing, 0 unexpected, 0 of wrong shape" in capsys.readouterr().out


def test_the_check_sees_one_wrong_name(repo, tmp_path, capsys):
    shapes = shapes_of("mask2former_r50")
    shapes["backbone.res6.0.conv1.weight"] = shapes.pop("backbone.res5.0.conv1.weight")
    (tmp_path / "names.json").write_text(json.dumps(shapes))
    report = checkpoint.verify(str(repo / "configs/coco_panoptic/m2f_r50.yaml"), None, str(tmp_path / "names.json"), [])
    assert report.missing == ["backbone.res5.0.conv1.weight"]
    assert report.unexpected == ["backbone.res6.0.conv1.weight"]


def test_a_checkpoint_of_unimatch_v2_loads_as_student_and_as_teacher(repo, tmp_path):
    """As its code saves it: data-parallel names, the EMA beside the model, scores of numpy."""
    weights = random_weights(shapes_of("unimatch_v2_small"))
    file = tmp_path / "best.pth"
    states = {"model": weights, "model_ema": {name: 2 * value for name, value in weights.items()}}
    content = {key: {f"module.{name}": t for name, t in state.items()} for key, state in states.items()}
    torch.save({**content, "epoch": 3, "previous_best": np.float64(86.3), "best_epoch": np.int64(2)}, file)
    model = build_model(
        get_config(repo / "configs/pascal_voc/unimatch_v2_s.yaml", ["MODEL.DEVICE", "cpu"]), None, False
    )
    last = "head.scratch.output_conv.2.weight"
    for which, factor in (("student", 1), ("teacher", 2)):
        assert checkpoint.load_weights(model, file, which=which).complete
        assert torch.equal(model.head.classifier.weight, factor * weights[last])
        assert torch.equal(model.backbone.model.model.norm.bias, factor * weights["backbone.norm.bias"])


@pytest.mark.parametrize("registers", [0, 4])
def test_the_files_of_dinov2_itself_load(tmp_path, registers):
    """Its class token has a position of its own, also where registers follow; timm's with registers has added it up."""
    shapes = {
        n.removeprefix("backbone."): s for n, s in shapes_of("unimatch_v2_small").items() if n.startswith("backbone.")
    }
    if registers:
        shapes["register_tokens"] = [1, registers, 384]
    weights = random_weights(shapes)
    torch.save(weights, tmp_path / "dinov2_vits14_pretrain.pth")
    arch = f"vit_small_patch14{'_reg4' if registers else ''}_dinov2"
    vit = TimmBackbone(
        arch, str(tmp_path / "dinov2_vits14_pretrain.pth"), layers=(2, 5, 8, 11), channels=(8, 8, 8, 8)
    ).model.model
    images = torch.randn(1, 3, 518, 518)
    patches = torch.nn.functional.conv2d(
        images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=14
    )
    tokens = torch.cat([weights["cls_token"], patches.flatten(2).transpose(1, 2)], 1) + weights["pos_embed"]
    if registers:
        tokens = torch.cat([tokens[:, :1], weights["register_tokens"], tokens[:, 1:]], 1)
    torch.testing.assert_close(vit._pos_embed(vit.patch_embed(images)), tokens)
    assert torch.equal(vit.blocks[3].attn.qkv.weight, weights["blocks.3.attn.qkv.weight"])


def test_a_pickle_of_the_first_release_loads(mini_config, tmp_path):
    """As Mask2Former's zoo has it: arrays of numpy under the first names, beside a note on their origin."""
    model = build_model(mini_config(file="m2f.yaml")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    arrays = first_release({name: tensor.numpy() for name, tensor in model.state_dict().items()})
    assert not arrays.keys() <= model.state_dict().keys()
    arrays["criterion.empty_weight"] = np.ones(17, np.float32)
    file = tmp_path / "model_final_94dc52.pkl"
    file.write_bytes(pickle.dumps({"model": arrays, "__author__": "third_party", "matching_heuristics": True}))
    torch.manual_seed(7)
    other = build_model(mini_config(file="m2f.yaml")).eval()
    assert checkpoint.load_weights(other, file).complete
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model.predict(images), other.predict(images), strict=True))
