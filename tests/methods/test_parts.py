"""How models with queries are put together: each part once, whole from the beginning, under the names of old checkpoints."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter

import pytest

from dearli_d2.masks.file_per_image import FilePerImage
from dearli_d2.masks.storage import MaskFolder
from dearli_d2.methods.hvl.model import HVL
from dearli_d2.methods.split_matching.matching import FocalIoUMatcher, SplitCriterion
from dearli_d2.methods.split_matching.model import SplitMatching
from dearli_d2.methods.split_matching.region_folder import RegionFolder
from dearli_d2.modeling import build_model
from dearli_d2.modeling.mask2former.criterion import Criterion, SetCriterion
from dearli_d2.modeling.mask2former.head import MaskFormerHead
from dearli_d2.modeling.mask2former.matcher import HungarianMatcher
from dearli_d2.modeling.mask2former.segmenter import MaskFormerSegmenter

# of the state dict of each config, as version 1 wrote it: number of tensors, and the hash of their sorted names and shapes
STATES = {
    "m2f.yaml": (232, "f0a4bc8cb393030d"),
    "dearli.yaml": (238, "50897247e47ca29e"),
    "hvl.yaml": (371, "e616bd980ba78ed2"),
    "split_matching.yaml": (249, "db6e80e2518931aa"),
}


@pytest.fixture
def made(monkeypatch) -> dict[type, list]:
    """Counts what is made, in the order of making: the arguments of heads and criteria."""
    found: dict[type, list] = {MaskFormerHead: [], Criterion: []}
    for kind, calls in found.items():
        original = kind.__init__

        def init(self, *args, _original=original, _calls=calls):
            _calls.append(args)
            _original(self, *args)

        monkeypatch.setattr(kind, "__init__", init)
    return found


@pytest.mark.parametrize("file", STATES)
def test_each_part_is_made_once_and_never_changed(file, mini_config, made):
    model = build_model(mini_config(file=file))
    assert Counter({kind.__name__: len(calls) for kind, calls in made.items()}) == {"MaskFormerHead": 1, "Criterion": 1}
    (num_classes, matcher), (pixel_decoder, predictor) = made[Criterion][0], made[MaskFormerHead][0]
    assert model.criterion.matcher is matcher
    assert model.criterion.num_classes == num_classes == model.num_classes
    assert (model.sem_seg_head.pixel_decoder, model.sem_seg_head.predictor) == (pixel_decoder, predictor)


@pytest.mark.parametrize("file", STATES)
def test_names_of_a_state_dict_are_those_of_earlier_checkpoints(file, mini_config):
    state = build_model(mini_config("MODEL.WEIGHTS", "", file=file)).state_dict()
    lines = sorted(f"{name} {tuple(value.shape)}" for name, value in state.items())
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]) == STATES[file]


@pytest.mark.parametrize(
    ("base", "kind"),
    [
        (FilePerImage, MaskFolder),
        (FilePerImage, RegionFolder),
        (Criterion, SetCriterion),
        (Criterion, SplitCriterion),
        (HungarianMatcher, FocalIoUMatcher),
        (MaskFormerSegmenter, HVL),
        (MaskFormerSegmenter, SplitMatching),
    ],
)
def test_a_subclass_takes_and_returns_what_its_base_does(base, kind):
    own = {name for name, value in vars(kind).items() if inspect.isfunction(value) and name != "__init__"}
    inherited = [name for name in own if getattr(getattr(base, name, None), "__module__", "").startswith("dearli_d2")]
    assert inherited
    for name in inherited:
        theirs, ours = (inspect.signature(getattr(cls, name)) for cls in (base, kind))
        assert ours.return_annotation == theirs.return_annotation, name
        added = list(ours.parameters.values())[len(theirs.parameters) :]
        assert list(ours.parameters)[: len(theirs.parameters)] == list(theirs.parameters), name
        assert all(parameter.default is not inspect.Parameter.empty for parameter in added), name
