"""Mask2Former and FC-CLIP from the image to its segments, against their authors' code with the same random weights.

It needs checkouts of github.com/facebookresearch/Mask2Former and github.com/bytedance/fc-clip, named by the environment variables
OFFICIAL_MASK2FORMER and OFFICIAL_FC_CLIP. Nothing in them need be compiled. It takes about two minutes and 6 GB.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from dearli_d2 import build_model, get_config
from dearli_d2.checkpoint import load_state
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.modeling.clip.text import Vocabulary
from tests.conftest import REPO
from tests.parity import official_panoptic as official

MASK2FORMER, FC_CLIP = (os.environ.get(f"OFFICIAL_{name}", "") for name in ("MASK2FORMER", "FC_CLIP"))
NAMES = "fcclip/data/datasets/coco_panoptic_with_prompt_eng.txt"


def computed(checkout: str, name: str, folder) -> dict:
    if not checkout:
        pytest.skip("no checkout of the authors' code is named")
    script, out = official.__file__, folder / "result.pt"
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", script, checkout, name, str(out)],
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return torch.load(out, weights_only=True)


def same_output(model, name: str, theirs: dict) -> None:
    image = official.image_of(name)
    height, width = theirs["panoptic"].shape
    with torch.no_grad():
        ours = model.eval()([{"image": image, "height": height, "width": width}])[0]
    difference = (ours["sem_seg"] - theirs["semantic"]).norm() / theirs["semantic"].norm()
    assert difference < 1e-5
    panoptic, segments = ours["panoptic_seg"]
    assert [(s["category_id"], s["isthing"]) for s in segments] == theirs["segments"]
    assert len(segments) > 1
    assert (panoptic == theirs["panoptic"]).float().mean() > 0.9995  # near ties decide pixels


def taxonomy(names, things) -> Taxonomy:
    ids = tuple(range(len(names)))
    return Taxonomy(tuple(names), frozenset(things), ids, tuple((0, 0, 0) for _ in ids))


def config(name: str, *overrides: str):
    thresholds = (
        "TEST.OBJECT_THRESHOLD",
        str(official.OBJECT_THRESHOLD),
        "TEST.OVERLAP_THRESHOLD",
        str(official.OVERLAP_THRESHOLD),
    )
    return get_config(REPO / f"configs/{name}.yaml", ["MODEL.DEVICE", "cpu", *thresholds, *overrides])


@pytest.mark.parametrize("backbone", ["r50", "swin_t"])
def test_mask2former(tmp_path, backbone):
    name = f"mask2former_{backbone}"
    theirs = computed(MASK2FORMER, name, tmp_path)
    classes = [(f"class {c}",) for c in range(133)]
    model = build_model(config(f"coco_panoptic/m2f_{backbone}"), taxonomy(classes, theirs["things"]))
    constants = {k: v for k, v in model.state_dict().items() if k.endswith("relative_position_index")}
    assert load_state(model, official.weights_of(name) | constants, "published").complete
    same_output(model, name, theirs)


def test_fc_clip(tmp_path):
    name = "fc_clip_convnext_l"
    theirs = computed(FC_CLIP, name, tmp_path)
    cfg = config("ade20k/fc_clip_convnext_l", "MODEL.ENSEMBLE.SEEN", os.path.join(os.path.abspath(FC_CLIP), NAMES))
    classes = [tuple(name.strip() for name in line.split(",")) for line in theirs["classes"]]
    model = build_model(cfg, taxonomy(classes, theirs["things"]), load_backbone=False)
    assert load_state(model, official.weights_of(name), "published").complete
    model._vocabulary = Vocabulary(official.texts_of(sum(theirs["synonyms"])), theirs["synonyms"])
    assert torch.equal(model.inference_alpha() == 0.6, theirs["seen"])
    same_output(model, name, theirs)
