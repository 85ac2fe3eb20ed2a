"""The model that `dearli export` is asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ..config import get_config
from ..errors import ConfigError, WeightsError
from ..predict import Predictor
from ..run_model import RunModel
from ..weights import read_file

_CPU = ("MODEL.DEVICE", "cpu")


def predictor_of(words: Sequence[str], config_file: str | None, weights: str | None, text: str | None) -> Predictor:
    """The model on the CPU.

    Args:
        words: the folder of a run, or nothing, and KEY VALUE pairs behind it.
        config_file: of the experiment; None = the run's, or the one in the weights.
        weights: checkpoint; None = the run's, or MODEL.WEIGHTS of the config.
        text: other classes; None = those of the checkpoint.

    Raises:
        ConfigError, WeightsError: something is missing or does not fit.
    """
    has_run = len(words) % 2
    run, overrides = (words[0] if has_run else None), [*words[has_run:], *_CPU]
    if run is not None and config_file is not None:
        raise ConfigError(f"{run} and --config-file: give the folder of a run or a config, not both")
    if run is not None:
        model = RunModel(Path(run), weights, overrides=overrides)
        return Predictor(model.config, model.weights, text)
    if config_file is not None:
        return Predictor(get_config(config_file, overrides), weights, text)
    if weights is None:
        raise ConfigError("nothing to export: give the folder of a run, or --weights FILE")
    return Predictor(_config_of(weights, overrides), weights, text)


def _config_of(weights: str, overrides: Sequence[str]) -> CfgNode:
    """The config that a checkpoint of a run holds."""
    content = read_file(weights)
    if not isinstance(content.get("config"), str):
        raise WeightsError(f"{weights} holds no config, as checkpoints of a run do; add --config-file FILE")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(content["config"], encoding="utf-8")
        try:
            return get_config(path, overrides)
        except ConfigError as error:
            raise ConfigError(
                f"{weights}, its config: {str(error).replace(f'{path}: ', '')}; or add --config-file FILE"
            ) from error
