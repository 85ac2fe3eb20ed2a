"""Ranks unlabelled images by what their label would teach."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from ..data.build import labeled_dicts
from ..data.catalog import dataset_dicts
from ..data.custom import TEST, VAL
from ..data.images import file_stamp, read_image
from ..data.preparation import convert_all
from ..data.remote import as_url, is_url
from ..data.taxonomy import Taxonomy
from ..errors import ConfigError, DatasetError, UnreadableImageError, first_few
from ..predict import Predictor, predict_files
from ..prediction_folder import Inputs, PredictionFolder, find_inputs
from ..reporting import is_out_of_memory
from ..run_model import RunModel
from . import choose
from .page import Entry, marked, small_picture, write_csv, write_page
from .regions import doubtful_regions, mask_of
from .signals import Signals, emphasized

logger = logging.getLogger(__name__)

_VERSION = 1  # of what is computed of an image
_SHOWN_CLASS = 0.005  # part of the image that a predicted class must cover to count


@dataclass(frozen=True)
class Suggestion:
    """An image to label.

    Attributes:
        place: of the image among the inputs.
        score: the product of `parts`; 0 for a choice by chance.
        parts: uncertainty, distance and rarity.
        signals: means of the signals, each in 0..1.
        reasons: in words.
    """

    place: int
    score: float
    parts: dict[str, float]
    signals: dict[str, float]
    reasons: list[str]


def key_of(path: str | Path) -> str:
    """Names an image in the journal of scores, with its time and size, so that a changed file is computed anew."""
    size, when = file_stamp(path)
    return json.dumps([as_url(path) if is_url(path) else os.path.realpath(path), when, size])


def journal_of(out: Path, name: str, identity: dict[str, str]) -> Path:
    """The file of results so far of this model. Another model has another file."""
    digest = hashlib.sha256(json.dumps([_VERSION, identity]).encode()).hexdigest()[:12]
    return out / f"{name}-{digest}.jsonl"


def unless_unreadable(compute: Callable[[str], dict[str, Any]], key: str) -> dict[str, Any]:
    """`compute(key)`, or {"skipped": reason} for an image that cannot be read, or for which memory is too small.

    Raises:
        ConfigError: the model needs something beside the image.
    """
    try:
        return compute(key)
    except Exception as error:
        if isinstance(error, UnreadableImageError):
            return {"skipped": str(error)}
        if isinstance(error, DatasetError):  # what holds for all images, such as missing captions, is said once
            raise ConfigError(str(error)) from error
        if is_out_of_memory(error):
            return {"skipped": f"{json.loads(key)[0]} needs more memory than there is"}
        raise


def score_image(signals: Signals, key: str) -> dict[str, Any]:
    """Makes the record of an image, for JSON: means of the signals, predicted classes, doubtful regions, and the feature."""
    doubts = signals(read_image(json.loads(key)[0]))
    best = doubts.probability.argmax(0).flatten()
    shares = torch.bincount(best, minlength=len(doubts.probability)).cpu().numpy() / len(best)
    return {
        "signals": {name: round(emphasized(doubt), 6) for name, doubt in doubts.maps.items()},
        "classes": np.flatnonzero(shares >= _SHOWN_CLASS).tolist(),
        "regions": doubtful_regions(doubts),
        "feature": _packed(doubts.feature),
    }


def _feature_alone(signals: Signals, key: str) -> dict[str, Any]:
    return {"feature": _packed(signals.feature(read_image(json.loads(key)[0])))}


def _packed(feature: torch.Tensor) -> str:
    return base64.b64encode(feature.numpy().astype(np.float16).tobytes()).decode()


def _unpacked(records: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.stack([np.frombuffer(base64.b64decode(r["feature"]), np.float16) for r in records]).astype(np.float32)


def labeled_images(config: CfgNode) -> Sequence[dict[str, Any]]:
    """Data-set dicts of the labelled training images; [] with a warning where they are not there any more."""
    try:
        return labeled_dicts(config)
    except DatasetError as error:
        logger.warning("the labelled images of the run are not found, so suggestions may be like them: %s", error)
        return []


def held_back_images(config: CfgNode) -> list[dict[str, Any]]:
    """Data-set dicts of own labelled images that train nothing: those of validation, and of a split "test"."""
    dicts: list[dict[str, Any]] = []
    if config.DATASETS.CUSTOM.ROOT:
        for name in (VAL, TEST):
            with suppress(DatasetError):  # no such part, or labels that are gone: labeled_images has warned
                dicts += dataset_dicts(name)
    return dicts


def without_labeled(inputs: Inputs, labeled: Sequence[dict[str, Any]]) -> Inputs:
    """The images that are not labelled yet. Raises `DatasetError` if there is none."""
    known = {os.path.realpath(d["file_name"]) for d in labeled}
    places = [i for i, path in enumerate(inputs.paths) if os.path.realpath(path) not in known]
    if not places:
        raise DatasetError(f"all {len(inputs.paths)} images below {inputs.folder} are labelled already")
    return subset(inputs, places)


def subset(inputs: Inputs, places: Sequence[int]) -> Inputs:
    """Some of the images."""
    paths, files, names = inputs.paths, inputs.file_names, inputs.names
    return Inputs(inputs.folder, [paths[i] for i in places], [files[i] for i in places], [names[i] for i in places])


@dataclass(frozen=True)
class Scored:
    """Holds the records of the images that could be read.

    Attributes:
        paths: of N images.
        records: of `score_image`.
        known: (M, C) features of labelled images.
        skipped: why the other images were skipped.
    """

    paths: list[Path]
    records: list[dict[str, Any]]
    known: np.ndarray
    skipped: list[str]


def score_images(
    run: RunModel, predictor: Predictor, paths: Sequence[Path], labeled: Sequence[dict[str, Any]], out: Path
) -> Scored:
    """Looks at images and at the labelled ones, and goes on with what lies in `out` of an earlier call.

    Args:
        run: the trained model; its student is compared with the teacher.
        predictor: of the run.
        paths: of the images.
        labeled: data-set dicts of labelled images.
        out: folder of the results so far.

    Raises:
        DatasetError: no image can be read.
    """
    signals = Signals(predictor.model, predictor.mapper, run.student())
    identity = run.identity(predictor)

    def compute(way: Callable[[Signals, str], dict[str, Any]], files: Sequence[Any], name: str) -> list[dict[str, Any]]:
        work = partial(unless_unreadable, partial(way, signals))
        return convert_all([key_of(file) for file in files], work, journal_of(out, name, identity), 1, f"{name} images")

    records = compute(score_image, paths, "suggested")
    skipped = [r["skipped"] for r in records if "skipped" in r]
    if len(skipped) == len(records):
        raise DatasetError(f"none of {len(records)} images can be used: {first_few(skipped)}")
    if skipped:
        logger.warning("%d of %d images are skipped: %s", len(skipped), len(records), first_few(skipped))
    files = [d["file_name"] for d in labeled if Path(d["file_name"]).is_file()]
    features = [r for r in compute(_feature_alone, files, "labelled") if "skipped" not in r]
    known = _unpacked(features) if features else np.zeros((0, 1), np.float32)
    used = [i for i, r in enumerate(records) if "skipped" not in r]
    return Scored([paths[i] for i in used], [records[i] for i in used], known, skipped)


def rank(
    scored: Scored, labeled: Sequence[dict[str, Any]], taxonomy: Taxonomy, count: int, by: str = "both", seed: int = 0
) -> list[Suggestion]:
    """Chooses `count` images, the most useful first; fewer if there are not so many.

    Args:
        scored: the images.
        labeled: data-set dicts of the labelled images.
        taxonomy: names the classes.
        count: number of suggestions.
        by: one of `choose.WAYS`.
        seed: of a choice by chance.
    """
    records = scored.records
    unsure = choose.uncertainty([r["signals"] for r in records])
    of_labeled = [{s["category_id"] for s in d["segments_info"]} for d in labeled]
    rare = choose.rarity([r["classes"] for r in records], of_labeled)
    if by == "random":
        places = choose.random_order([path.as_posix() for path in scored.paths], seed)[:count]
        return [Suggestion(i, 0.0, {}, records[i]["signals"], ["chosen by chance"]) for i in places]
    if by == "uncertainty":
        places = np.argsort(-unsure, kind="stable")[:count].tolist()
        parts = [{"uncertainty": float(unsure[i])} for i in places]
    else:
        places, distances = choose.spread_choice(unsure * rare, _unpacked(records), scored.known, count)
        parts = [
            {"uncertainty": float(unsure[i]), "distance": min(d, 2.0), "rarity": float(rare[i])}
            for i, d in zip(places, distances, strict=True)
        ]
    usual = {name: np.mean([r["signals"][name] for r in records]) for name in records[0]["signals"]}
    return [
        Suggestion(i, float(np.prod(list(p.values()))), p, records[i]["signals"], _reasons(records[i], p, usual, of_labeled, taxonomy))
        for i, p in zip(places, parts, strict=True)
    ]  # fmt: skip


def _reasons(
    record: dict[str, Any], parts: dict[str, float], usual: dict[str, Any], labeled: list[set[int]], taxonomy: Taxonomy
) -> list[str]:
    """Why an image was chosen."""
    reasons = [f"{_wavering(region, taxonomy)} in region {n}" for n, region in enumerate(record["regions"], start=1)]
    for name, value in record["signals"].items():
        factor = value / max(float(usual[name]), 1e-12)
        if factor >= 1.2:
            what = "the entropy of the classes is" if name == "entropy" else f"{name} disagree"
            reasons.append(f"{what} {factor:.1f} times as much as usual")
    if labeled:
        for c in record["classes"]:
            shown = sum(c in classes for classes in labeled)
            if shown <= 0.1 * len(labeled):
                reasons.append(f"it may show {taxonomy.main_names[c]}, as {shown} of {len(labeled)} labelled images do")
    if "distance" in parts:
        reasons.append(f"its distance to the nearest labelled or suggested image is {parts['distance']:.2f}")
    return reasons


def _wavering(region: dict[str, Any], taxonomy: Taxonomy) -> str:
    return " or ".join(f"{taxonomy.main_names[i]} ({100 * p:.0f} %)" for i, p in region["classes"])


def suggest(
    run: RunModel,
    images: Sequence[Path],
    out: Path,
    count: int,
    by: str = "both",
    formats: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes `suggestions.csv`, the page `suggestions.html` and labels to correct in `prelabels`.

    Args:
        run: the trained model.
        images: files and folders.
        out: folder to write. Results so far lie there too, so the same call goes on after an interruption.
        count: number of suggestions.
        by: one of `choose.WAYS`.
        formats: of the labels to correct.
        overwrite: replace labels of other images there.

    Returns:
        Numbers of suggested, scored and skipped images.

    Raises:
        ConfigError, DatasetError: no image that is not labelled, or none that can be read.
    """
    labeled = labeled_images(run.config)
    inputs = without_labeled(find_inputs(images), [*labeled, *held_back_images(run.config)])
    predictor = run.predictor()
    scored = score_images(run, predictor, inputs.paths, labeled, out)
    chosen = rank(scored, labeled, predictor.model.known_taxonomy(), count, by)
    places = {path: i for i, path in enumerate(inputs.paths)}
    selected = subset(inputs, [places[scored.paths[s.place]] for s in chosen])
    folder = PredictionFolder(
        out / "prelabels", selected, run.identity(predictor), overwrite, ("overlay", "confidence"), formats
    )
    predict_files(predictor, folder)
    rows = [
        {"rank": n, "image": file, "score": s.score, **s.parts, **s.signals, "reasons": "; ".join(s.reasons)}
        for n, (file, s) in enumerate(zip(selected.file_names, chosen, strict=True), start=1)
    ]
    write_csv(out / "suggestions.csv", rows)
    entries = (
        _entry(folder, path, file, name, s, scored.records[s.place])
        for path, file, name, s in zip(selected.paths, selected.file_names, selected.names, chosen, strict=True)
    )
    write_page(out / "suggestions.html", "Images to label next", _notes(run, scored.records, len(labeled), chosen, by), entries)  # fmt: skip
    return {"suggested": len(chosen), "scored": len(scored.paths), "skipped": len(scored.skipped)}


def _entry(
    folder: PredictionFolder, path: Path, file: str, name: str, suggestion: Suggestion, record: dict[str, Any]
) -> Entry:
    image = read_image(path)
    pictures = [("doubtful regions", marked(image, [mask_of(region) for region in record["regions"]]))]
    overlay = folder.path(name, "overlay")
    if overlay.is_file():
        pictures.append(("prediction", small_picture(read_image(overlay))))
    title = file if not suggestion.parts else f"{file}, score {suggestion.score:.2f}"
    return Entry(title, pictures, suggestion.reasons)


def _notes(run: RunModel, records: Sequence[dict[str, Any]], labeled: int, chosen: Sequence[Suggestion], by: str) -> list[str]:  # fmt: skip
    names = list(records[0]["signals"])
    ways = {
        "both": "the product of uncertainty, distance to the nearest labelled or suggested image, and rarity of the predicted classes",
        "uncertainty": "uncertainty alone",
        "random": "chance",
    }
    notes = [
        f"{len(chosen)} of {len(records)} images, chosen by {ways[by]}. The model is that of {run.run}.",
        f"Signals of uncertainty: {', '.join(names)}. Each is the mean over the most doubtful fifth of the pixels.",
    ]
    if "teacher and student" not in names:
        notes.append("The checkpoint holds one network, so teacher and student cannot be compared.")
    if len(names) - ("teacher and student" in names) < 3:
        notes.append("The method has one classifier, so two classifiers cannot be compared.")
    if not labeled:
        notes.append("The labelled images were not found, so nothing is said about distance to them.")
    return notes
