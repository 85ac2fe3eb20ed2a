"""OpenCLIP models with the weights and the activation that a config asks for."""

from __future__ import annotations

import logging
from pathlib import Path

import open_clip
from torch import nn

from ...errors import ConfigError, WeightsError
from ...pretrained import SHIPPED, clip_facts, no_such_tag
from ...weight_list import fetch, in_place_of_file
from ...weights import read_state_dict
from ..clip.text_tower import ClipModel
from . import tiny_clip  # makes the shipped model known to open_clip

_OPENAI_CONSTANTS = ("input_resolution", "context_length", "vocab_size")  # beside the weights in OpenAI's own files


def build_clip(arch: str, weights: str, tag: str = "") -> ClipModel:
    """An OpenCLIP model in fp32 on the CPU, with the activation that its weights were trained with.

    Args:
        arch: name of an OpenCLIP model configuration, or the path of such a JSON file.
        weights: a pretrained tag (of open_clip; downloaded unless it is here), a local file, "shipped" (in this package), or "" for a
            random start.
        tag: the tag of a local file, see `dearli_d2.pretrained`.

    Raises:
        ConfigError: unknown `arch`, or a tag that is not of it. WeightsError: weights that cannot be had or do not fit.
    """
    facts = clip_facts(arch, weights, tag)
    if arch.endswith(".json"):
        if not Path(arch).is_file():
            raise ConfigError(f"MODEL.BACKBONE.ARCH: no file {arch}")
        open_clip.add_model_config(Path(arch))
        arch = Path(arch).stem
    if arch not in open_clip.list_models():
        raise ConfigError(f"MODEL.BACKBONE.ARCH: open_clip has no model {arch!r}")
    if weights == SHIPPED:
        weights = str(tiny_clip.ASSETS / f"{arch}.safetensors")
    quick_gelu = facts is not None and facts.quick_gelu
    if weights in open_clip.list_pretrained_tags_by_model(arch):
        path = fetch(
            f"open_clip/{arch}/{weights}", f"set MODEL.BACKBONE.WEIGHTS to the file and MODEL.BACKBONE.TAG to {weights}"
        )
        try:
            return open_clip.create_model(arch, pretrained=str(path), force_quick_gelu=quick_gelu)
        except Exception as error:  # damaged files give errors of many types
            raise WeightsError(f"{path} cannot be read as {arch}: {error}") from error
    if weights and not Path(weights).is_file():
        raise WeightsError(
            f"MODEL.BACKBONE.WEIGHTS: {no_such_tag(arch, weights)}; nor is it a file{in_place_of_file(weights)}"
        )
    model = _create_random(arch, quick_gelu)
    if weights:
        _load(model, weights, arch)
    return model


def _create_random(arch: str, quick_gelu: bool) -> ClipModel:
    # open_clip warns on the root logger about the random start that is wanted here
    logging.disable(logging.WARNING)
    try:
        return open_clip.create_model(arch, pretrained=None, force_quick_gelu=quick_gelu)
    finally:
        logging.disable(logging.NOTSET)


def _load(model: nn.Module, path: str, arch: str) -> None:
    state = {k: v.float() if v.is_floating_point() else v for k, v in read_state_dict(path).items()}
    for name in _OPENAI_CONSTANTS:
        state.pop(name, None)
    own = model.state_dict()
    strange = sorted(own.keys() ^ state.keys())
    if strange:
        missing = len(own.keys() - state.keys())
        raise WeightsError(
            f"{path} is not {arch}: {missing} names missing, {len(strange) - missing} unexpected, first {strange[0]}"
        )
    wrong = [name for name, value in state.items() if value.shape != own[name].shape]
    if wrong:
        shapes = f"{tuple(state[wrong[0]].shape)} in the file, {tuple(own[wrong[0]].shape)} in {arch}"
        raise WeightsError(
            f"{path} is not {arch}: {len(wrong)} tensors of another shape, first {wrong[0]}, {shapes}. "
            "MODEL.BACKBONE.ARCH must be the architecture at the image size that the file was trained with"
        )
    model.load_state_dict(state)
