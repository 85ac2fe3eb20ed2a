"""What published weights expect of their input and of their network: facts of the tables that open_clip and timm ship.

A pretrained tag fixes the normalisation of the image, its size in pretraining, and the activation of CLIP's transformers
(OpenAI's CLIP has QuickGELU). A file of weights does not say which tag it is of: MODEL.BACKBONE.TAG does, unless all tags of the
architecture agree. Nothing here downloads or reads weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import open_clip
import timm
from detectron2.config import CfgNode
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg

from .errors import ConfigError

if TYPE_CHECKING:
    from .methods.base import Network

OWN = "own"  # as a tag: weights that follow none
SHIPPED = "shipped"
_SHIPPED_SIZE = 128  # pixels, of the tiny CLIP in `assets`
_QUICK = "-quickgelu"  # end of the names of open_clip's architectures with QuickGELU
OPENAI_MEAN, OPENAI_STD = (
    tuple(255 * v for v in values) for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
)
IMAGENET_MEAN, IMAGENET_STD = (
    tuple(255 * v for v in values) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
)
_TOLERANCE = 0.01  # of 0..255; configs print few digits


@dataclass(frozen=True)
class Pretrained:
    """Facts about published weights.

    Args:
        source: the table's entry, for messages.
        tag: its tag.
        mean, std: of 0..255 RGB.
        size: side of the images in pretraining, in pixels.
        quick_gelu: activation of CLIP's transformers. Towers of timm keep their own.
    """

    source: str
    tag: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    quick_gelu: bool = False


def is_clip(backbone: CfgNode) -> bool:
    """True if a backbone section names a model of open_clip."""
    return backbone.NAME.startswith("OpenCLIP")


def facts_of(backbone: CfgNode) -> Pretrained | None:
    """Facts about the weights of a section such as MODEL.BACKBONE.

    They are None where the weights are random, follow no tag, or are of no known package.

    Raises:
        ConfigError: a tag of another model, or a file whose tag must be named.
    """
    if is_clip(backbone):
        return clip_facts(backbone.ARCH, backbone.WEIGHTS, backbone.TAG)
    if backbone.NAME == "TimmBackbone":
        return timm_facts(backbone.ARCH, backbone.WEIGHTS, backbone.TAG)
    return None


def text_facts(text: CfgNode) -> Pretrained | None:
    """Facts about the CLIP model of MODEL.TEXT.ENCODER; see `facts_of`."""
    try:
        return clip_facts(text.ENCODER, text.WEIGHTS, text.TAG)
    except ConfigError as error:
        raise ConfigError(text_keys(str(error))) from error


def text_keys(message: str) -> str:
    """A message about MODEL.BACKBONE with the keys of MODEL.TEXT."""
    return message.replace("MODEL.BACKBONE.ARCH", "MODEL.TEXT.ENCODER").replace("MODEL.BACKBONE.", "MODEL.TEXT.")


def section_keys(message: str, section: str) -> str:
    """A message about MODEL.BACKBONE with the keys of another network's section, such as "MODEL.SENIOR"."""
    return message.replace("MODEL.BACKBONE.", f"{section}.BACKBONE.")


# ------------------------------------------------------------------------------------------ open_clip


def clip_facts(arch: str, weights: str, tag: str = "") -> Pretrained | None:
    """Facts of open_clip's table about weights; None where they are random or follow no tag.

    Args:
        arch: an architecture of open_clip, or the path of a JSON file.
        weights: a tag, a file, "shipped" or "".
        tag: the tag of a file of weights, or the one whose activation a random start has; `OWN` = none.

    Raises:
        ConfigError: see `facts_of`.
    """
    if "quick_gelu" not in open_clip.get_pretrained_cfg("ViT-B-16", "openai"):
        raise ConfigError(
            "this open_clip does not know the activation of its weights: pip install 'open_clip_torch>=2.30'"
        )
    if tag == OWN:
        return None
    if weights == SHIPPED:
        return _facts_of_tag(arch, SHIPPED, {}, _SHIPPED_SIZE)
    known = {} if arch.endswith(".json") else _clip_tags(arch)
    if weights in known:
        if tag not in ("", weights):
            raise ConfigError(
                f"MODEL.BACKBONE.TAG {tag} is for a file of weights; MODEL.BACKBONE.WEIGHTS {weights} is a tag itself, leave "
                "it empty"
            )
        return known[weights]
    if tag:
        if tag not in known:
            raise ConfigError(f"MODEL.BACKBONE.TAG: {no_such_tag(arch, tag)}; of weights of your own: {OWN}")
        return known[tag]
    if not weights:
        return None
    return _agreed(
        known,
        f"MODEL.BACKBONE.WEIGHTS: {weights!r} is no pretrained tag of {arch}. If it is a file, set MODEL.BACKBONE.TAG to the "
        "tag that it was published as",
    )


def _clip_tags(arch: str) -> dict[str, Pretrained]:
    config = open_clip.get_model_config(arch) if arch in open_clip.list_models() else None
    if config is None:
        return {}
    size = config["vision_cfg"].get("image_size", 224)
    entries = {tag: open_clip.get_pretrained_cfg(arch, tag) for tag in open_clip.list_pretrained_tags_by_model(arch)}
    return {tag: _facts_of_tag(arch, tag, entry, size) for tag, entry in entries.items()}


def _facts_of_tag(arch: str, tag: str, entry: dict, size: int | Sequence[int]) -> Pretrained:
    config = open_clip.get_model_config(arch) or {}
    return Pretrained(
        f"open_clip's {arch} / {tag}",
        tag,
        _in_255(entry.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        _in_255(entry.get("std", open_clip.OPENAI_DATASET_STD)),
        size if isinstance(size, int) else max(size),
        bool(config.get("quick_gelu") or entry.get("quick_gelu")),
    )


def no_such_tag(arch: str, tag: str) -> str:
    """In words: `arch` has no pretrained `tag`, and what it has."""
    other = arch.removesuffix(_QUICK) if arch.endswith(_QUICK) else arch + _QUICK
    if tag in open_clip.list_pretrained_tags_by_model(other):
        kind = "GELU" if arch.endswith(_QUICK) else "QuickGELU"
        return f"{tag!r} is no pretrained tag of {arch}: it was trained with {kind}, use {other}"
    tags = open_clip.list_pretrained_tags_by_model(arch)
    return f"{tag!r} is no pretrained tag of {arch}; tags: {', '.join(tags) or 'none'}"


def keep_activation(section: CfgNode) -> None:
    """Removes the weights from a section of a backbone or of MODEL.TEXT, in place, but keeps their activation in its TAG.

    The weights of such a model come from a checkpoint.
    """
    if "ENCODER" in section:
        facts = text_facts(section) if section.ENCODER else None
    else:
        facts = facts_of(section) if is_clip(section) else None
    if facts is not None and not section.TAG and section.WEIGHTS != SHIPPED:
        section.TAG = facts.tag
    section.WEIGHTS = ""


# ------------------------------------------------------------------------------------------ timm


def timm_facts(arch: str, weights: str, tag: str = "") -> Pretrained | None:
    """Facts of timm's table about weights; None where they are random or follow no tag.

    Args:
        arch: a model of timm, perhaps with a tag behind a dot.
        weights: "pretrained", "package:NAME", a file or "".
        tag: the tag of a file of weights; `OWN` = none.

    Raises:
        ConfigError: see `facts_of`.
    """
    if not weights or tag == OWN or not timm.is_model(arch):
        return None
    name, _, named = arch.partition(".")
    if weights == "pretrained" or weights.startswith("package:"):
        if tag:
            raise ConfigError(
                f"MODEL.BACKBONE.TAG {tag} is for a file of weights; those of timm are named by MODEL.BACKBONE.ARCH {name}.{tag}"
            )
        return _timm_entry(arch)
    entries = {full.partition(".")[2]: _timm_entry(full) for full in timm.list_pretrained(f"{name}.*")}
    known = {its_tag: facts for its_tag, facts in entries.items() if facts is not None}
    tag = tag or named
    if tag and tag not in known:
        raise ConfigError(
            f"MODEL.BACKBONE.TAG: timm's {name} has no tag {tag!r}; tags: {', '.join(known) or 'none'}; of weights of your "
            f"own: {OWN}"
        )
    if tag:
        return known[tag]
    return _agreed(
        known, f"MODEL.BACKBONE.WEIGHTS {weights}: set MODEL.BACKBONE.TAG to the tag of {name} that it was published as"
    )


def _timm_entry(full: str) -> Pretrained | None:
    try:
        entry = get_pretrained_cfg(full)
    except RuntimeError as error:  # a tag that the architecture has not
        raise ConfigError(f"MODEL.BACKBONE.ARCH: {error}") from error
    if entry is None:
        return None
    return Pretrained(f"timm's {full}", entry.tag or "", _in_255(entry.mean), _in_255(entry.std), entry.input_size[-1])


# ------------------------------------------------------------------------------------------ both


def _in_255(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(255 * float(v) for v in values)


def _agreed(known: dict[str, Pretrained], request: str) -> Pretrained | None:
    """The facts that all tags of an architecture share, with the source of the first; None without a tag."""
    kinds: dict[tuple[Any, ...], list[str]] = {}
    for tag, facts in known.items():
        kinds.setdefault((facts.mean, facts.std, facts.quick_gelu), []).append(tag)
    if len(kinds) > 1:
        groups = (
            f"{'QuickGELU' if quick else 'GELU'}, mean {_shown(mean)}: {', '.join(tags[:4])}{', ...' if len(tags) > 4 else ''}"
            for (mean, _, quick), tags in kinds.items()
        )
        groups = (group if any(quick for *_, quick in kinds) else group.removeprefix("GELU, ") for group in groups)
        raise ConfigError(f"{request}, since its tags differ ({'; '.join(groups)}); of weights of your own: {OWN}")
    return next(iter(known.values()), None)


def _shown(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{v:.6g}' for v in values)}]"


def resolve_normalization(cfg: CfgNode, networks: Sequence[Network]) -> None:
    """Fills an empty PIXEL_MEAN and PIXEL_STD of each network with what its weights expect.

    A network with random weights takes those of the method's other network, else ImageNet's, or OpenAI's for a CLIP tower.

    Args:
        networks: of the method; the first is that of MODEL.

    Raises:
        ConfigError: a value that contradicts the weights, with the right one; see `facts_of`.
    """
    if cfg.MODEL.TEXT.ENCODER:
        text_facts(cfg.MODEL.TEXT)  # refuses what it must
    facts, *others = [_facts_in(network.config(cfg), network.section) for network in networks]
    backbone = cfg.MODEL.BACKBONE
    if backbone.NAME == "build_resnet_backbone" and cfg.MODEL.WEIGHTS:
        # the published files whose names fit detectron2's ResNet are torchvision's
        facts = Pretrained("detectron2's ResNet", "torchvision", IMAGENET_MEAN, IMAGENET_STD, 224)
    default = (OPENAI_MEAN, OPENAI_STD) if is_clip(backbone) else (IMAGENET_MEAN, IMAGENET_STD)
    known = next((other for other in others if other is not None), None)
    _resolve(cfg.MODEL, "MODEL", facts, default if known is None else (known.mean, known.std))
    for network, own in zip(networks[1:], others, strict=True):
        _resolve(network.config(cfg), network.section, own, (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))


def _facts_in(section: CfgNode, name: str) -> Pretrained | None:
    try:
        return facts_of(section.BACKBONE)
    except ConfigError as error:
        raise ConfigError(section_keys(str(error), name)) from error


def _resolve(section: CfgNode, name: str, facts: Pretrained | None, default: Sequence[Sequence[float]]) -> None:
    values = default if facts is None else (facts.mean, facts.std)
    for key, right in zip(("PIXEL_MEAN", "PIXEL_STD"), values, strict=True):
        given = section[key]
        if not given and section.BACKBONE.TAG == OWN:
            raise ConfigError(f"{name}.{key} must be set for weights of your own ({name}.BACKBONE.TAG {OWN})")
        if not given:
            section[key] = [round(v, 8) for v in right]
        elif facts is not None and any(abs(a - b) > _TOLERANCE for a, b in zip(given, right, strict=True)):
            raise ConfigError(
                f"{name}.{key} is {_shown(given)}, but the weights of {facts.source} expect {_shown(right)}; leave the key "
                f"out, it follows the weights. Weights of your own: {name}.BACKBONE.TAG {OWN}"
            )
