"""Labelled segments whose class the model doubts: they may be errors of the labels."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from ..data.build import labeled_dicts
from ..data.catalog import dataset_dicts
from ..data.custom import VAL, holds_back
from ..data.images import read_image
from ..data.mappers import TestMapper
from ..data.panoptic_png import read_panoptic, segment_ids
from ..data.preparation import convert_all
from ..data.sizes import resize_labels
from ..data.taxonomy import Taxonomy
from ..errors import DatasetError, first_few
from ..modeling.per_pixel.semantic import normalized
from ..modeling.segmenter import Segmenter
from ..run_model import RunModel
from ..visualization import short_name
from .page import Entry, marked, write_csv, write_page
from .signals import class_scores_only
from .unlabeled import journal_of, key_of, unless_unreadable

logger = logging.getLogger(__name__)


@torch.no_grad()
def segment_posteriors(
    model: Segmenter, mapper: TestMapper, image: np.ndarray, ids: np.ndarray, segments: Sequence[dict[str, Any]]
) -> np.ndarray:
    """(S, K) mean class probabilities inside of each labelled segment; NaN for one without a pixel.

    Args:
        model: in eval mode.
        mapper: as for prediction.
        image: (H, W, 3) uint8 RGB.
        ids: (H, W) segment ids.
        segments: `segments_info`.
    """
    with class_scores_only(model):
        scores = model([mapper.prepare(image)])[0]["sem_seg"]
    probability = normalized(scores.float()[None])[0]
    ids = resize_labels(ids, probability.shape[-2:])
    return np.stack(
        [
            probability[:, torch.from_numpy(ids == s["id"]).to(probability.device)].mean(1).cpu().numpy()
            for s in segments
        ]
    )


def doubted_segments(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All labelled segments, the most doubtful first.

    The order is that of the margin: the mean probability of the label's class inside of the segment, less that of the likeliest
    other class. A segment is suspected, as in confident learning (Northcutt et al., 2021), if the other class is as probable
    there as it is on average in segments that are labelled with it.

    Args:
        records: "image", "category", "probability" of the label's class, "other" class, "other_probability", and more.

    Returns:
        The records with "margin" and "suspected".
    """
    own: dict[int, list[float]] = {}
    for r in records:
        own.setdefault(r["category"], []).append(r["probability"])
    usual = {category: float(np.mean(values)) for category, values in own.items()}
    judged = [
        {
            **r,
            "margin": r["probability"] - r["other_probability"],
            "suspected": r["other_probability"] > r["probability"]
            and r["other_probability"] >= usual.get(r["other"], 0.5),
        }
        for r in records
    ]
    return sorted(judged, key=lambda r: (r["margin"], r["image"], r["id"]))


def judge_image(
    model: Segmenter, mapper: TestMapper, dicts: dict[str, dict[str, Any]], key: str
) -> dict[str, list[dict[str, Any]]]:
    """The labelled segments of an image that are no crowd, with what the model says of their class, for JSON."""
    d = dicts[key]
    segments = [s for s in d["segments_info"] if not s["iscrowd"]]
    if not segments:
        return {"segments": []}
    image, ids = read_image(d["file_name"]), segment_ids(read_panoptic(d["pan_seg_file_name"]))
    found = []
    for segment, posterior in zip(segments, segment_posteriors(model, mapper, image, ids, segments), strict=True):
        if np.isfinite(posterior).all():
            category, others = segment["category_id"], posterior.copy()
            others[category] = -1
            other = int(others.argmax())
            found.append(
                {
                    "id": segment["id"], "category": category, "probability": round(float(posterior[category]), 6),
                    "other": other, "other_probability": round(float(max(others[other], 0)), 6),
                }
            )  # fmt: skip
    return {"segments": found}


def labeled_and_held_back(config: CfgNode) -> dict[str, tuple[dict[str, Any], bool]]:
    """All labelled images of a run by their key: the data-set dict, and whether the model was trained on it."""
    dicts = [(d, True) for d in labeled_dicts(config)]
    if config.DATASETS.CUSTOM.ROOT and holds_back(config.DATASETS.CUSTOM):
        dicts += [(d, False) for d in dataset_dicts(VAL)]
    missing = [d["file_name"] for d, _ in dicts if not Path(d["file_name"]).is_file()]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(dicts)} labelled images of the run are missing: {first_few(missing)}"
        )
    return {
        json.dumps([*json.loads(key_of(d["file_name"])), key_of(d["pan_seg_file_name"]), _classes(d)]): (d, trained)
        for d, trained in dicts
    }


def _classes(d: dict[str, Any]) -> list[list[int]]:
    return [[s["id"], s["category_id"]] for s in d["segments_info"]]


def find_doubted(run: RunModel, out: Path, count: int) -> dict[str, Any]:
    """Writes `doubted.csv`, all labelled segments in the order of doubt, and the page `doubted.html` of the first ones.

    Args:
        run: the trained model and, by its config, the labelled images.
        out: folder to write. The same call goes on after an interruption.
        count: number of segments on the page.

    Returns:
        Numbers of segments, of suspected ones, and of skipped images.

    Raises:
        DatasetError: the labelled images are not there, or none can be read.
    """
    found = labeled_and_held_back(run.config)
    predictor = run.predictor()
    judge = partial(judge_image, predictor.model, predictor.mapper, {key: d for key, (d, _) in found.items()})
    journal = journal_of(out, "labels", run.identity(predictor))
    results = convert_all(list(found), partial(unless_unreadable, judge), journal, 1, "labelled images")
    skipped = [r["skipped"] for r in results if "skipped" in r]
    if len(skipped) == len(results):
        raise DatasetError(f"none of {len(results)} labelled images can be used: {first_few(skipped)}")
    if skipped:
        logger.warning("%d of %d labelled images are skipped: %s", len(skipped), len(results), first_few(skipped))
    ranked = doubted_segments(
        [
            {"image": d["file_name"], "trained": trained, "pan_seg_file_name": d["pan_seg_file_name"], **segment}
            for (d, trained), result in zip(found.values(), results, strict=True)
            for segment in result.get("segments", ())
        ]
    )
    taxonomy = predictor.model.known_taxonomy()
    write_csv(out / "doubted.csv", [_row(n, r, taxonomy) for n, r in enumerate(ranked, start=1)])
    suspected = sum(r["suspected"] for r in ranked)
    notes = [
        f"{len(ranked)} labelled segments of {len(results) - len(skipped)} images; {suspected} are suspected. "
        f"The model is that of {run.run}. {min(count, len(ranked))} are shown, the most doubtful first.",
        "The margin is the mean probability of the label's class in the segment, less that of the likeliest other class.",
        "The model was trained on most of these labels, so it has learned some of their errors by heart and does not doubt them. "
        "It judges held-back images without having seen their labels.",
    ]
    write_page(out / "doubted.html", "Labels to look at again", notes, _entries(ranked[:count], taxonomy))
    return {"segments": len(ranked), "suspected": suspected, "skipped": len(skipped)}


def _row(number: int, r: dict[str, Any], taxonomy: Taxonomy) -> dict[str, Any]:
    names = taxonomy.main_names
    return {
        "rank": number, "image": r["image"], "segment": r["id"], "label": names[r["category"]], "model": names[r["other"]],
        "margin": r["margin"], "label_probability": r["probability"], "model_probability": r["other_probability"],
        "suspected": "yes" if r["suspected"] else "no", "trained_on": "yes" if r["trained"] else "no",
    }  # fmt: skip


def _entries(ranked: Iterable[dict[str, Any]], taxonomy: Taxonomy) -> Iterable[Entry]:
    names = taxonomy.main_names
    for r in ranked:
        mask = segment_ids(read_panoptic(r["pan_seg_file_name"])) == r["id"]
        label, other = names[r["category"]], names[r["other"]]
        reasons = [f"label {label}: probability {r['probability']:.2f}", f"model {other}: probability {r['other_probability']:.2f}"]  # fmt: skip
        if r["suspected"]:
            reasons.append(f"suspected: as sure as where the label says {other}")
        reasons.append("the model was trained on this label" if r["trained"] else "held back from training")
        picture = marked(read_image(r["image"]), [mask])
        yield Entry(
            f"{short_name(r['image'])}: labelled {label}, the model says {other}", [("segment", picture)], reasons
        )
