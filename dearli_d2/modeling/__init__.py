"""Models: the shared parts, and `build_model`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY

from ..data.catalog import class_source, taxonomy_of
from ..data.taxonomy import Taxonomy
from ..errors import ConfigError, DatasetError
from ..methods import method_of
from ..pretrained import keep_activation
from .backbone import open_clip as _open_clip  # noqa: F401  registration
from .backbone import swin as _swin  # noqa: F401  registration
from .backbone import timm as _timm  # noqa: F401  registration
from .segmenter import Segmenter
from .unused import freeze_unused

_RESNET = "build_resnet_backbone"  # the one of detectron2's backbones whose maps are res2..res5


def build_model(cfg: CfgNode, taxonomy: Taxonomy | None = None, load_backbone: bool = True) -> Segmenter:
    """The model of a config, on `cfg.MODEL.DEVICE`.

    Args:
        cfg: the config.
        taxonomy: classes; None = those of the first labelled data set. Where that is not on this machine the model is
            built without; a checkpoint of this project brings its own.
        load_backbone: False loads no WEIGHTS of networks and of MODEL.TEXT, since a checkpoint with all of them follows.

    Raises:
        ConfigError: an unknown part, a number of classes other than MODEL.NUM_CLASSES, or names in MODEL.TEXT.CLASS_NAMES
            that do not fit the classes. WeightsError: see backbones.
    """
    name = class_source(cfg)
    if taxonomy is None and name and cfg.MODEL.CLASSIFIER != "none":
        try:
            taxonomy = taxonomy_of(name)
        except DatasetError:
            taxonomy = None
    if taxonomy is not None and len(taxonomy) != cfg.MODEL.NUM_CLASSES:
        raise ConfigError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES} but {name or 'the taxonomy'} has {len(taxonomy)} classes"
        )
    if taxonomy is not None and cfg.MODEL.TEXT.CLASS_NAMES:
        taxonomy = taxonomy.with_names_of(cfg.MODEL.TEXT.CLASS_NAMES)
    method = method_of(cfg)
    backbones = [n for n, build in BACKBONE_REGISTRY if n == _RESNET or not build.__module__.startswith("detectron2.")]
    for network in method.networks:
        _check_known(f"{network.section}.BACKBONE.NAME", network.config(cfg).BACKBONE.NAME, backbones)
    if not load_backbone:
        cfg = cfg.clone()
        cfg.defrost()
        for section in (*(network.config(cfg).BACKBONE for network in method.networks), cfg.MODEL.TEXT):
            keep_activation(section)
    build: Callable[..., Segmenter] = method.segmenter()  # detectron2's `configurable` takes a config
    model = build(cfg, taxonomy=taxonomy)
    freeze_unused(model)
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Triton starts kernels on the current GPU
    return model.to(device)


def _check_known(key: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ConfigError(f"{key}: there is no {name!r}; known: {', '.join(sorted(known))}")
