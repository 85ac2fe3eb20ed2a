"""Published checkpoints load strictly: each name and shape of the file has its place in the model, and the other way round."""

from __future__ import annotations

import json

import pytest

from dearli_d2 import checkpoint
from dearli_d2.cli import main
from tests.published import shapes_of


@pytest.fixture(autouse=True)
def no_initialisation(monkeypatch):
    """Names and shapes are all that matters here, and drawing hundreds of millions of weights takes long."""
    import torch

    for name in ("normal_", "trunc_normal_", "uniform_", "xavier_uniform_", "kaiming_uniform_", "kaiming_normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


def first_release(shapes):
    """The names of Mask2Former's published files: its own code renames them when it reads a file without versions."""
    renamed = {n.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): s for n, s in shapes.items()}
    return {n.replace("predictor.query_feat.", "predictor.static_query."): s for n, s in renamed.items()}


@pytest.mark.parametrize(
    ("config", "shapes", "count"),
    [
        ("coco_panoptic/m2f_r50", shapes_of("mask2former_r50"), 557),
        ("ade20k/m2f_r50", first_release(shapes_of("mask2former_r50", 150)), 557),
        ("coco_panoptic/m2f_swin_t", first_release(shapes_of("mask2former_swin_t")), 481),
        ("coco_panoptic/m2f_swin_l", shapes_of("mask2former_swin_l"), 649),
        ("ade20k/m2f_swin_l", first_release(shapes_of("mask2former_swin_l", 150)), 649),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_every_published_name_has_its_place(repo, tmp_path, capsys, config, shapes, count):
    (tmp_path / "names.json").write_text(json.dumps(shapes))
    arguments = ["--config-file", str(repo / f"configs/{config}.yaml"), "--names", str(tmp_path / "names.json")]
    assert main(["checkpoint", "verify", *arguments]) == 0
    assert f"{count} matched, 0 missing, 0 unexpected, 0 of wrong shape" in capsys.readouterr().out


def test_the_check_sees_one_wrong_name(repo, tmp_path, capsys):
    shapes = shapes_of("mask2former_r50")
    shapes["backbone.res6.0.conv1.weight"] = shapes.pop("backbone.res5.0.conv1.weight")
    (tmp_path / "names.json").write_text(json.dumps(shapes))
    report = checkpoint.verify(str(repo / "configs/coco_panoptic/m2f_r50.yaml"), None, str(tmp_path / "names.json"), [])
    assert report.missing == ["backbone.res5.0.conv1.weight"]
    assert report.unexpected == ["backbone.res6.0.conv1.weight"]
