"""Every shipped config at tiny sizes: model, optimiser, mappers; and two steps of every method on miniworld.

The partition changes no model; `test_config.py` reads every config with each of its partitions.
"""

from __future__ import annotations

import json

import open_clip
import pytest
import torch

from dearli_d2.config import get_config
from dearli_d2.data.build import build_labeled_mapper, build_unlabeled_mapper, labeled_dicts, unlabeled_dicts
from dearli_d2.data.catalog import dataset_dicts
from dearli_d2.data.compact import unpacked
from dearli_d2.engine.optimizer import build_optimizer, build_scheduler, parameter_groups
from dearli_d2.engine.trainer import DualStreamTrainer
from dearli_d2.masks.classical import ClassicalGenerator
from dearli_d2.masks.generate import generate
from dearli_d2.masks.storage import MaskFolder
from dearli_d2.modeling import build_model
from tests.conftest import MINI_OVERRIDES, SSL
from tests.experiments import CONFIGS, EXPERIMENTS, name_of

DATA = "miniworld_val@n4"
MINIWORLD = sorted((CONFIGS / "miniworld").glob("[!B]*.yaml"))
TEXT_TOWER = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TOWERS = {
    "tiny-vit": {"image_size": 64, "layers": 12, "width": 32, "head_width": 16, "patch_size": 16},
    "tiny-eva": {"image_size": 224, "timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None},
}  # fmt: skip
ARCHITECTURES = {"OpenCLIPConvNeXt": "miniworld-convnext", "OpenCLIPViT": "tiny-vit", "OpenCLIPEVA": "tiny-eva"}


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Small architectures of the families that the configs name, known to open_clip."""
    folder = tmp_path_factory.mktemp("towers")
    for name, vision in TOWERS.items():
        content = {"embed_dim": 192 if "eva" in name else 32, "vision_cfg": vision, "text_cfg": TEXT_TOWER}
        (folder / f"{name}.json").write_text(json.dumps(content))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Class-agnostic masks of the scenes of `DATA`."""
    folder = MaskFolder(tmp_path_factory.mktemp("masks"))
    generate([d["file_name"] for d in dataset_dicts(DATA)], ClassicalGenerator(), folder, batch_size=2)
    return folder.folder


def tiny_arch(backbone):
    if backbone.NAME == "TimmBackbone":
        return "vit_tiny_patch16_224" if backbone.ARCH.startswith("vit") else "resnet10t"
    if backbone.NAME == "SwinBackbone":
        return "swin_tiny_patch4_window7_224"
    return ARCHITECTURES.get(backbone.NAME, backbone.ARCH)


def tiny(path, masks, *more):
    """The config with miniworld as its data and small networks of the same families; `more` KEY VALUE pairs come last."""
    cfg = get_config(path)
    zero_shot, agnostic = bool(cfg.DATASETS.UNSEEN_CLASSES), cfg.MODEL.CLASSIFIER == "none"
    values = {
        "MODEL.DEVICE": "cpu",
        "MODEL.NUM_CLASSES": 1 if agnostic else 16,
        "MODEL.WEIGHTS": "",
        "MODEL.TEXT.TEMPLATES": "name",
        "MODEL.TEXT.CLASS_NAMES": "",
        "MODEL.TEXT.ENCODER": "miniworld-convnext" if cfg.MODEL.TEXT.ENCODER else "",
        "MODEL.TEXT.WEIGHTS": "",
        "MODEL.SPLIT.REGIONS.IMAGE_SIZE": 64,
        "MODEL.SPLIT.REGIONS.WINDOWS": (2,),
        "MODEL.SPLIT.REGIONS.CACHE": "",
        "MODEL.RESNETS.DEPTH": 50,
        "DATASETS.MASKS": str(masks) if agnostic else "",
        "DATASETS.UNSEEN_CLASSES": ("sand", "water") if zero_shot else (),
        "SOLVER.MAX_ITER": cfg.SOLVER.MAX_ITER,  # epochs of so few scenes are short
        "INPUT.CROP_SIZE": 64,
        "INPUT.MAX_SIZE_TRAIN": 256,
    }
    for key in ("TRAIN", "SOURCE", "UNLABELED", "TEST"):
        values[f"DATASETS.{key}"] = (DATA,) if cfg.DATASETS[key] else ()
    for key, backbone in (("MODEL.BACKBONE", cfg.MODEL.BACKBONE), ("MODEL.SENIOR.BACKBONE", cfg.MODEL.SENIOR.BACKBONE)):
        values |= {f"{key}.ARCH": tiny_arch(backbone), f"{key}.WEIGHTS": "", f"{key}.PYRAMID_DIM": 32}
        if backbone.LAYERS:
            values[f"{key}.LAYERS"] = (2, 5, 8, 11)
    return get_config(path, [*(str(x) for pair in values.items() for x in pair), *more])


@pytest.mark.parametrize("path", [p for p in EXPERIMENTS if p.parent.name != "custom"], ids=name_of)
def test_config_builds_model_optimiser_and_mappers(path, masks, towers):
    cfg = tiny(path, masks)
    model = build_model(cfg)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    groups = parameter_groups(cfg, model)
    assert trained == {name for group in groups for name in group["names"]}
    for group in groups:
        (factor,) = {model.learning_rate(name).factor for name in group["names"]}
        rates = (cfg.SOLVER.BASE_LR, cfg.SOLVER.BASE_LR * cfg.SOLVER.BACKBONE_MULTIPLIER)
        assert group["lr"] in [pytest.approx(rate * factor) for rate in rates]
    build_scheduler(cfg, build_optimizer(cfg, model))
    model.check_training(cfg)
    for key in ("TRAIN", "SOURCE"):
        for d in labeled_dicts(cfg, key)[:1]:
            sample = unpacked(build_labeled_mapper(cfg)(d))
            assert sample["image"].shape == (3, 64, 64)
            assert sample["targets"].masks.shape[1:] == (64, 64)
            assert sample["targets"].labels.numel()
            assert sample["targets"].labels.max() < cfg.MODEL.NUM_CLASSES
    for d in unlabeled_dicts(cfg)[:1]:
        sample = build_unlabeled_mapper(cfg)(d)
        assert sample["strong"].shape == (cfg.SSL.STRONG_VIEWS, 3, 64, 64)
        assert "targets" not in sample


@pytest.mark.parametrize("path", MINIWORLD, ids=lambda p: p.stem)
def test_two_steps_of_every_method(path, masks, tmp_path):
    cfg = get_config(path)
    data = [
        "DATASETS.TRAIN",
        f"('{DATA}',)",
        "DATASETS.MASKS",
        str(masks) if cfg.DATASETS.MASKS else "",
        "MODEL.WEIGHTS",
        "",
    ]
    if cfg.DATASETS.UNLABELED:
        data += [*SSL, "DATASETS.UNLABELED", f"('{DATA}',)"]
    if cfg.DATASETS.SOURCE:
        data += ["DATASETS.SOURCE", f"('{DATA}',)", "SSL.SOURCE_IMS_PER_BATCH", "2"]
    options = [*MINI_OVERRIDES, *data, "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0", "OUTPUT_DIR", str(tmp_path)]
    trainer = DualStreamTrainer(get_config(path, options))
    before = {name: p.detach().clone() for name, p in trainer.student.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.student.named_parameters())
    assert all(torch.isfinite(after[name]).all() for name in before)
    moved = [name for name in before if not torch.equal(after[name], before[name])]
    assert len(moved) > 0.9 * len(before)


SHORT = (
    "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SSL.IMS_PER_BATCH", "2", "SSL.PICTURE_PERIOD", "0", "DATASETS.TEST", "()",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "128", "DATALOADER.NUM_WORKERS", "0",
)  # fmt: skip
BACKBONES = {
    "imagenet": ("MODEL.BACKBONE.ARCH", "convnext_atto"),
    "clip": ("MODEL.BACKBONE.NAME", "OpenCLIPConvNeXt", "MODEL.BACKBONE.ARCH", "miniworld-convnext"),
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["m2f_convnext_b", "m2f_ssl_convnext_b"])
def test_two_steps_of_mask2former_train_the_backbone_unless_it_is_frozen(name, frozen, backbone, masks, tmp_path):
    """The rows of DEARLi's Table 1 without a text classifier; of CLIP what the decoder does not read stays as it is."""
    more = *SHORT, *BACKBONES[backbone], "MODEL.BACKBONE.FREEZE", str(frozen), "OUTPUT_DIR", str(tmp_path)
    cfg = tiny(CONFIGS / "ade20k" / f"{name}.yaml", masks, *more)
    trainer = DualStreamTrainer(cfg)
    before = {n: p.detach().clone() for n, p in trainer.student.named_parameters()}
    trained = {n for n, p in trainer.student.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {n for n, p in trainer.student.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= trained
    assert len(moved) > 0.9 * len(trained)
    assert any(n.startswith("backbone.") for n in moved) is not frozen
    assert not any("text" in n or n.endswith("visual.head.proj.weight") for n in moved)
