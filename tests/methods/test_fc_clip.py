"""FC-CLIP is M2F-Lang with mask pooling, and with an ensemble that trusts CLIP more for classes that were not seen."""

from __future__ import annotations

import pytest
import torch

from dearli_d2 import build_model
from dearli_d2.config import get_config
from dearli_d2.data.class_names import class_table
from dearli_d2.data.taxonomy import names_in
from dearli_d2.errors import ConfigError

SEEN = ["MODEL.ENSEMBLE.ALPHA_UNSEEN", "0.2", "MODEL.ENSEMBLE.SEEN"]


def test_a_class_is_seen_if_one_of_its_names_is_one_of_the_training(mini_config, tmp_path):
    model = build_model(mini_config())
    names = [list(synonyms) for synonyms in model.taxonomy.text_names]
    path = tmp_path / "seen.txt"
    path.write_text(f"1:something else,{names[2][-1].upper()}\n2:invalid_class_id\n3:{names[5][0]}\n")
    model = build_model(mini_config(*SEEN, str(path)))
    expected = [0.6 if i in (2, 5) else 0.2 for i in range(16)]
    torch.testing.assert_close(model.inference_alpha(), torch.tensor(expected))


def test_the_ensemble_is_one_of_each_weight_where_all_classes_have_it(mini_config, tmp_path):
    """Where all are seen the weight is ALPHA, where none is ALPHA_UNSEEN; pseudo-labels take ALPHA always."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 64)
    path = tmp_path / "seen.txt"

    def predictions(names, alpha):
        path.write_text(f"1:{names}\n")
        model = build_model(mini_config(*SEEN, str(path))).eval()
        model.load_state_dict(plain.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(model.predict(images)[0], plain.predict(images, alpha)[0])
            torch.testing.assert_close(model.predict_labels(images)[0], plain.predict(images, 0.6)[0])

    plain = build_model(mini_config()).eval()
    names = [synonyms[0] for synonyms in plain.taxonomy.text_names]
    predictions(",".join(names), 0.6)
    predictions("nothing of this world", 0.2)


def test_the_lists_of_the_project_say_what_is_seen():
    seen = names_in("coco_panoptic", "MODEL.ENSEMBLE.SEEN")
    share = [any(name.lower() in seen for name in entry.names) for entry in class_table("ade20k")]
    assert 50 < sum(share) < 90  # 64 with the names of FC-CLIP's authors
    with pytest.raises(ConfigError, match="MODEL.ENSEMBLE.SEEN: 'cocoo' is neither a file nor one of ade20k"):
        names_in("cocoo", "MODEL.ENSEMBLE.SEEN")


def test_what_cannot_work_is_refused(repo):
    path = repo / "configs/miniworld/m2f.yaml"
    with pytest.raises(ConfigError, match="MODEL.ENSEMBLE.SEEN is for MODEL.CLASSIFIER text"):
        get_config(path, ["MODEL.ENSEMBLE.SEEN", "coco_panoptic"])
    with pytest.raises(ConfigError, match="MASK_POOLING needs a classifier"):
        get_config(path, ["MODEL.MASK_FORMER.MASK_POOLING", "True", "MODEL.MASK_FORMER.MASK_DIM", "32"])
