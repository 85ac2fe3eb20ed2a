"""Data-parallel training wants a gradient for every trained parameter: what leads to no loss is frozen."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch

from dearli_d2.data.build import build_labeled_mapper, labeled_dicts
from dearli_d2.data.compact import unpacked
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.errors import ConfigError
from dearli_d2.masks.classical import ClassicalGenerator
from dearli_d2.masks.generate import generate
from dearli_d2.masks.storage import MaskFolder
from dearli_d2.modeling import build_model
from dearli_d2.modeling.unused import freeze_unused
from dearli_d2.structures import Targets
from tests.conftest import REPO, SSL

CONFIGS = sorted((REPO / "configs" / "miniworld").glob("[!B]*.yaml"))
DATA = "miniworld_val@n4"
CLIP = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TOWERS = {
    "unused-vit": {"image_size": 64, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "unused-eva": {"image_size": 224, "timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None},
}  # fmt: skip

KINDS = {
    "convnext": ("OpenCLIPConvNeXt", "miniworld-convnext"),
    "vit": ("OpenCLIPViT", "unused-vit"),
    "eva": ("OpenCLIPEVA", "unused-eva"),
    "timm_resnet": ("TimmBackbone", "resnet10t"),
    "timm_resnet_frozen_norm": ("TimmBackbone", "resnet10t", "FREEZE_NORM", "True"),
    "timm_convnext": ("TimmBackbone", "convnext_atto"),
    "timm_vit": ("TimmBackbone", "vit_tiny_patch16_224"),
    "timm_vit_layers": ("TimmBackbone", "vit_tiny_patch16_224", "LAYERS", "(2, 5, 8, 10)"),
    "timm_dinov2_last_blocks": ("TimmBackbone", "vit_small_patch14_dinov2", "TRAINABLE_BLOCKS", "2"),
    "detectron2_resnet": ("build_resnet_backbone", "resnet50"),
}
WITH_TEXT = ("convnext", "vit", "eva")
# method to what it needs with a backbone without text; None = it cannot have one
METHODS = {
    "m2f": (),
    "m2f_lang": None,
    "hvl": ("MODEL.TEXT.ENCODER", "miniworld-convnext", "MODEL.HVL.VL_WEIGHT", "0.0"),
    "semidavil": ("MODEL.SEMIDAVIL.FEATURE", "res4", "MODEL.SEMIDAVIL.GUIDANCE", "False"),
    "segkc": (),
    "split_matching": ("MODEL.TEXT.ENCODER", "miniworld-convnext"),
}
PAIRS = [
    (method, kind)
    for method, alone in METHODS.items()
    for kind in KINDS
    if (kind in WITH_TEXT and method != "split_matching") or (kind not in WITH_TEXT and alone is not None)
]


@pytest.fixture(scope="module", autouse=True)
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    for name, vision in TOWERS.items():
        content = {"embed_dim": 192 if "eva" in name else 32, "vision_cfg": vision, "text_cfg": CLIP}
        (folder / f"{name}.json").write_text(json.dumps(content))
    open_clip.add_model_config(folder)


def without_gradient(model) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_trained_parameter_of_every_config_has_a_gradient(path, mini_config, tmp_path):
    """In a training step with all streams, the CLIP backbone being fine-tuned where its method allows that."""
    options = ["DATASETS.TRAIN", f"('{DATA}',)", "MODEL.WEIGHTS", ""]
    cfg = mini_config(file=path.name)
    if cfg.DATASETS.MASKS:
        masks = MaskFolder(tmp_path / "masks")
        generate(
            [d["file_name"] for d in labeled_dicts(mini_config(*options, file="m2f.yaml"))], ClassicalGenerator(), masks
        )
        options += ["DATASETS.MASKS", str(masks.folder)]
    if cfg.DATASETS.UNLABELED:
        options += [*SSL, "DATASETS.UNLABELED", f"('{DATA}',)"]
    if cfg.DATASETS.SOURCE:
        options += ["DATASETS.SOURCE", f"('{DATA}',)", "SSL.SOURCE_IMS_PER_BATCH", "2"]
    if cfg.MODEL.META_ARCHITECTURE != "SplitMatching":
        options += ["MODEL.BACKBONE.FREEZE", "False"]
    trainer = DualStreamTrainer(mini_config(*options, "SOLVER.MAX_ITER", "1", file=path.name))
    trainer.train()
    assert not without_gradient(trainer.student)


def sections(name: str, kind: str) -> list[str]:
    """Overrides that make a backbone section one of `KINDS`, trained."""
    family, arch, *more = KINDS[kind]
    options = [("NAME", family), ("ARCH", arch), ("WEIGHTS", ""), ("FREEZE", "False"), ("PYRAMID_DIM", "16")]
    options += [("TRAINABLE_BLOCKS", "-1"), *zip(more[::2], more[1::2], strict=True)]
    return [word for key, value in options for word in (f"{name}.{key}", value)]


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_every_trained_parameter_of_every_backbone_has_a_gradient(method, kind, mini_config):
    side = "56" if kind in ("eva", "timm_dinov2_last_blocks") else "64"
    options = [*sections("MODEL.BACKBONE", kind), "INPUT.CROP_SIZE", side, "DATASETS.TRAIN", f"('{DATA}',)"]
    options += ["MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']", "MODEL.BACKBONE.FREEZE_AT", "0"]
    if method == "segkc":
        options += [*sections("MODEL.SENIOR.BACKBONE", kind), "DATASETS.UNLABELED", "()"]
    if kind not in WITH_TEXT:
        options += METHODS[method]
    cfg = mini_config(*options, file=f"{method}.yaml")
    model, mapper = build_model(cfg).train(), build_labeled_mapper(cfg)
    samples = [unpacked(mapper(d)) for d in labeled_dicts(cfg)[:2]]
    sum(model(samples).values()).backward()
    assert any(p.requires_grad for p in model.backbone.parameters())
    assert not without_gradient(model)


VARIANTS = [
    ("m2f", "MODEL.MASK_FORMER.MASK_WEIGHT", "0.0"),
    ("hvl", "MODEL.HVL.TEXTUAL_QUERIES", "False", "MODEL.HVL.VL_WEIGHT", "0.0"),
    ("hvl", "MODEL.HVL.HIERARCHY", "False", "MODEL.HVL.DIVERSITY_WEIGHT", "0.0"),
    ("hvl", "MODEL.HVL.REFINEMENT", "False"),
    ("hvl", "MODEL.HVL.JOINT_DECODER", "False"),
    ("hvl", "MODEL.HVL.PER_CLASS_PROMPTS", "True"),
    ("hvl", "MODEL.HVL.PROMPT_WEIGHT", "0.0", "MODEL.HVL.DIVERSITY_WEIGHT", "0.0"),
    ("hvl", "MODEL.HVL.VL_WEIGHT", "0.0"),
    ("hvl", "MODEL.MASK_FORMER.NUM_QUERIES", "0"),
    ("semidavil", "MODEL.SEMIDAVIL.HEAD", "dpt", "MODEL.SEMIDAVIL.GUIDANCE", "False"),
    ("semidavil", "MODEL.SEMIDAVIL.HEAD", "mask2former", "MODEL.SEMIDAVIL.GUIDANCE", "False"),
    ("segkc", "MODEL.SEGKC.CONSULT", "False"),
    ("segkc", "MODEL.SEGKC.KD_WEIGHT", "0.0"),
    ("split_matching", "MODEL.SPLIT.CANDIDATE_EMBEDDING", "dense_mlp"),
    ("split_matching", "MODEL.SPLIT.MFE_WEIGHT", "0.0", "MODEL.SPLIT.COSINE_WEIGHT", "0.0"),
    ("split_matching", "MODEL.SPLIT.CANDIDATE_QUERIES", "0"),
]


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v[:3]))
def test_every_trained_parameter_of_every_part_has_a_gradient(mini_config, variant, annotated):
    """Also in a step whose images have no annotated object."""
    method, *options = variant
    options += ["DATASETS.TRAIN", f"('{DATA}',)", "DATASETS.UNLABELED", "()", "DATASETS.SOURCE", "()"]
    cfg = mini_config(*options, file=f"{method}.yaml")
    model, mapper = build_model(cfg).train(), build_labeled_mapper(cfg)
    samples = [unpacked(mapper(d)) for d in labeled_dicts(cfg)[:2]]
    if not annotated:
        samples = [{**x, "targets": Targets(x["targets"].labels[:0], x["targets"].masks[:0])} for x in samples]
    sum(model(samples).values()).backward()
    assert not without_gradient(model)


def test_a_classifier_without_a_loss_is_refused(mini_config):
    with pytest.raises(ConfigError, match="CLASS_WEIGHT is 0, so nothing teaches the classifier"):
        mini_config("MODEL.MASK_FORMER.CLASS_WEIGHT", "0.0", file="m2f.yaml")


def test_running_statistics_and_modes_stay_as_they_are(mini_config):
    model = build_model(mini_config(*sections("MODEL.BACKBONE", "timm_resnet"), file="m2f.yaml"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    freeze_unused(model)
    assert model.training
    assert all(m.training for m in model.backbone.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_network_of_one_image_size_is_refused_before_training(mini_config):
    options = sections("MODEL.BACKBONE", "timm_vit")
    options[options.index("vit_tiny_patch16_224")] = "swin_tiny_patch4_window7_224"
    with pytest.raises(ConfigError, match="does not take images of 64 x 64"):
        build_model(mini_config(*options, file="m2f.yaml"))
