"""Our M2F-Lang beside the authors' code, on the same random weights, images and points.

It needs a checkout of github.com/helen1c/DEARLi, unmodified, with the folder `ops` of facebookresearch/Mask2Former's
`mask2former/modeling/pixel_decoder` at the same place (theirs lacks it; it need not be compiled), named by the environment variable
OFFICIAL_DEARLI. It takes about a minute and 6 GB.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from dearli_d2 import build_model, get_config
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.engine.teacher import EMATeacher
from dearli_d2.modeling.clip.text import VILD_TEMPLATES, Vocabulary, build_vocabulary
from dearli_d2.structures import Targets
from tests.conftest import REPO
from tests.parity import official

CHECKOUT = os.environ.get("OFFICIAL_DEARLI", "")
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="OFFICIAL_DEARLI names no checkout of the authors' code")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    needed = official.CLASS_NAMES, "mask2former/modeling/pixel_decoder/ops/functions/ms_deform_attn_func.py"
    missing = [name for name in needed if not os.path.isfile(os.path.join(CHECKOUT, name))]
    assert not missing, f"OFFICIAL_DEARLI {CHECKOUT} has no {missing}"
    out = tmp_path_factory.mktemp("official") / "result.pt"
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", official.__file__, CHECKOUT, str(out)],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def model():
    options = ["MODEL.BACKBONE.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    cfg = get_config(REPO / "configs/ade20k/dear_convnext_b.yaml", options)
    names = tuple((f"class {c}",) for c in range(official.CLASSES))
    things = frozenset(range(100))
    taxonomy = Taxonomy(names, things, tuple(range(official.CLASSES)), tuple((0, 0, 0) for _ in names))
    model = build_model(cfg, taxonomy, load_backbone=False)
    official.set_weights(model)
    model._vocabulary = Vocabulary(official.text_embeddings(), official.SYNONYMS)
    return model


def test_every_weight_has_the_published_name(theirs, model):
    assert sorted(model.state_dict()) == theirs["names"]


def test_their_list_of_class_names_is_read_as_they_read_it(theirs, model):
    names = [tuple(line.split(",")) for line in theirs["classes"]]
    ids = tuple(range(official.CLASSES))  # of the annotation files; the list counts from 1
    taxonomy = Taxonomy(tuple(n[:1] for n in names), model.taxonomy.thing_ids, ids, model.taxonomy.colors)
    assert list(taxonomy.with_names_of(os.path.join(CHECKOUT, official.CLASS_NAMES)).names) == names


@pytest.mark.parametrize("case", official.TEACHERS)
def test_the_teacher_keeps_as_much_of_itself(theirs, case):
    burn_in, own_weights = case
    teacher = EMATeacher(torch.nn.Linear(1, 1), 0.999, not own_weights, burn_in)
    assert [teacher.momentum(step) for step in official.STEPS] == pytest.approx(theirs["momentum"][case])


def test_text_embeddings(theirs, model):
    assert list(VILD_TEMPLATES) == list(theirs["prompts"])
    clip = model.backbone
    ours = build_vocabulary(clip.clip_model, clip.arch, official.SPOKEN, VILD_TEMPLATES)
    torch.testing.assert_close(ours.embeddings, theirs["spoken"], rtol=0, atol=1e-5)


def test_logits_of_all_layers_and_ensembled_semantic_scores(theirs, model):
    model.eval()
    sample = {"image": official.image("test"), "height": official.SIZE, "width": official.SIZE}
    with torch.no_grad():
        output = model.network(model.preprocess([sample]).tensor)
        classes = model.class_logits(output.class_outputs)
        masks = torch.stack([output.mask_logits(layer) for layer in range(len(classes))])
        semantic = model([sample])[0]["sem_seg"]
    assert official.relative(classes, theirs["class_logits"]) < 1e-4
    assert official.relative(masks, theirs["mask_logits"]) < 1e-4
    assert official.relative(semantic, theirs["semantic"]) < 1e-4


def test_losses_and_gradients_of_a_semi_supervised_step(theirs, model):
    model.train()
    everywhere = torch.ones(official.SIZE, official.SIZE, dtype=torch.bool)

    def stream(parts):
        return [
            {"image": official.image(key), "targets": Targets(*official.segments(key, count)), "inside": everywhere}
            for key, count in parts
        ]

    with official.same_points():
        losses = model({"labeled": stream(official.LABELED), "unlabeled": stream(official.UNLABELED)})
    assert losses.keys() == theirs["losses"].keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(theirs["losses"][name].item(), rel=1e-4), name
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert gradients.keys() == theirs["gradients"].keys()
    errors = {name: official.relative(gradient, theirs["gradients"][name]) for name, gradient in gradients.items()}
    worst = max(errors, key=errors.get)
    assert errors[worst] < 2e-3, (worst, errors[worst])
