"""The tokenizer of an OpenCLIP model. Most lie in open_clip; those of SigLIP, RoBERTa and others come from the Hugging Face hub."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import open_clip

from ...download import only_cache_if_offline
from ...errors import ConfigError, WeightsError


def tokenizer_of(model_name: str) -> Any:
    """The tokenizer of an OpenCLIP model.

    Args:
        model_name: a model of open_clip.

    Raises:
        WeightsError: its tokenizer is not on this machine and the hub does not answer, within two seconds; or it cannot be read.
        ConfigError: it needs the package transformers.
    """
    config = open_clip.get_model_config(model_name) or {}
    repository = config.get("text_cfg", {}).get("hf_tokenizer_name", "")
    if not repository:
        return open_clip.get_tokenizer(model_name)
    try:
        with nullcontext() if Path(repository).exists() else only_cache_if_offline(repository):
            return open_clip.get_tokenizer(model_name)
    except ImportError as error:
        raise ConfigError(
            f"the tokenizer of {model_name} needs the package transformers: pip install transformers"
        ) from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{repository}, the tokenizer of {model_name}, cannot be read: {error}") from error
