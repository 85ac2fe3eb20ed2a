"""The model of a finished training run, from the run's folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from .config import get_config
from .data.catalog import dataset_records
from .data.custom import register_custom
from .errors import ConfigError, first_few
from .modeling.segmenter import Segmenter
from .predict import Predictor, identity
from .tiles import Tiles
from .weights import read_file


class RunModel:
    """The config and the weights of a run.

    Args:
        run: its folder.
        weights: a checkpoint; None = `model_final.pth` of the run.
        which: "student" or "teacher"; None = the teacher where the checkpoint has one.
        overrides: KEY VALUE pairs.

    Raises:
        ConfigError: the folder holds no run, or the run is not finished.
        WeightsError: the checkpoint cannot be read.
    """

    def __init__(
        self, run: Path, weights: str | None = None, which: str | None = None, overrides: Sequence[str] = ()
    ) -> None:
        config = run / "config.yaml"
        if not config.is_file():
            raise ConfigError(f"{run} is no folder of a training run: it has no config.yaml")
        self.run, self.weights = run, Path(weights) if weights else run / "model_final.pth"
        if not weights and not self.weights.is_file():
            found = [p.name for p in sorted(run.glob("model_*.pth"))]
            advice = f"; choose a checkpoint with --weights: {first_few(found)}" if found else ""
            raise ConfigError(f"{run} is not finished: it has no model_final.pth{advice}")
        self.has_teacher = "teacher" in read_file(self.weights)
        if which is None:
            which = "teacher" if self.has_teacher else "student"
        self.config: CfgNode = get_config(str(config), ["TEST.WEIGHTS", which, *overrides])
        if self.config.DATASETS.CUSTOM.ROOT:
            register_custom(self.config.DATASETS.CUSTOM)

    def predictor(self) -> Predictor:
        """The model, ready for images."""
        return Predictor(self.config, self.weights)

    def student(self) -> Segmenter | None:
        """The student beside the teacher that `predictor` is; None where the checkpoint has one network."""
        if not self.has_teacher or self.config.TEST.WEIGHTS != "teacher":
            return None
        config = self.config.clone()
        config.defrost()
        config.TEST.WEIGHTS = "student"
        config.freeze()
        return Predictor(config, self.weights).model

    def identity(self, predictor: Predictor, amp: str | None = None, tiles: Tiles | None = None) -> dict[str, str]:
        """Digests of everything that a prediction depends on."""
        return identity(predictor, None, None, amp, tiles)

    def unlabeled_images(self) -> list[Path]:
        """The images of DATASETS.UNLABELED. Raises `ConfigError` where the run has none."""
        names = self.config.DATASETS.UNLABELED
        if not names:
            raise ConfigError(
                f"{self.run} was trained without unlabelled images (DATASETS.UNLABELED); give --images FOLDER"
            )
        return [Path(file) for name in names for file in dataset_records(name).files()]
