"""Models. Importing this package registers the backbones and meta-architectures with detectron2."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from torch import nn

from ..data.catalog import class_source, taxonomy_of
from ..data.taxonomy import Taxonomy
from ..errors import ConfigError, DatasetError
from ..pretrained import keep_activation
from .backbone import open_clip as _open_clip  # noqa: F401  registration
from .backbone import timm as _timm  # noqa: F401  registration
from .meta_arch import dpt_segmenter as _dpt_segmenter  # noqa: F401  registration
from .meta_arch import hvl as _hvl  # noqa: F401  registration
from .meta_arch import mask_former as _mask_former  # noqa: F401  registration
from .meta_arch import segkc as _segkc  # noqa: F401  registration
from .meta_arch import semidavil as _semidavil  # noqa: F401  registration
from .meta_arch import split_matching as _split_matching  # noqa: F401  registration
from .unused import freeze_unused


def build_model(cfg: CfgNode, taxonomy: Taxonomy | None = None, load_backbone: bool = True) -> nn.Module:
    """The model of a config, on `cfg.MODEL.DEVICE`.

    Args:
        taxonomy: classes; None = those of the first labelled data set. Where that is not on this machine the model is
            built without; a checkpoint of this project brings its own.
        load_backbone: False leaves the WEIGHTS of MODEL.BACKBONE, MODEL.SENIOR.BACKBONE and MODEL.TEXT alone, since a checkpoint
            follows that holds all of them.

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
    for key, backbone in (("MODEL.BACKBONE", cfg.MODEL.BACKBONE), ("MODEL.SENIOR.BACKBONE", cfg.MODEL.SENIOR.BACKBONE)):
        if backbone.NAME not in BACKBONE_REGISTRY:
            known = ", ".join(sorted(name for name, _ in BACKBONE_REGISTRY))
            raise ConfigError(f"{key}.NAME: there is no {backbone.NAME!r}; known: {known}")
    if not load_backbone:
        cfg = cfg.clone()
        cfg.defrost()
        for section in (cfg.MODEL.BACKBONE, cfg.MODEL.SENIOR.BACKBONE, cfg.MODEL.TEXT):
            keep_activation(section)
    try:
        architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    except KeyError as error:
        raise ConfigError(f"MODEL.META_ARCHITECTURE: there is no {cfg.MODEL.META_ARCHITECTURE!r}") from error
    model = architecture(cfg, taxonomy=taxonomy)
    freeze_unused(model)
    return model.to(cfg.MODEL.DEVICE)
