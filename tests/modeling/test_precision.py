"""Frozen image towers in the type of autocast: their error, their casts, and what notices that weights have changed."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dearli_d2.modeling.backbone.open_clip import OpenCLIPBackbone, OpenCLIPConvNeXt, OpenCLIPViT
from tests.modeling.test_backbones import TINY_VIT

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def convnext(frozen: bool = True) -> OpenCLIPBackbone:
    return OpenCLIPConvNeXt("miniworld-convnext", "shipped", frozen=frozen).eval()


@pytest.fixture(scope="module", params=["convnext", "vit"])
def tower(request, tmp_path_factory) -> OpenCLIPBackbone:
    if request.param == "convnext":
        return convnext()
    path = tmp_path_factory.mktemp("clip") / "tests-tiny-vit.json"
    path.write_text(TINY_VIT)
    torch.manual_seed(0)
    return OpenCLIPViT(str(path), "", frozen=True, pyramid_dim=24).eval()


class Operations(TorchDispatchMode):
    """The names of what ran, each with the types of its floating results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.seen.append((func.name(), tensor.dtype))
        return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_frozen_tower_errs_by_the_rounding_of_the_type(tower, dtype):
    exact = deepcopy(tower).double().encode(IMAGES.double())
    with torch.autocast("cpu", dtype):
        features = tower.encode(IMAGES)
    for name, expected in exact.items():
        assert features[name].dtype == dtype
        error = (features[name].double() - expected).norm() / expected.norm()
        assert error < 2 * torch.finfo(dtype).eps, name  # eps = distance of 1 to the next number


def test_a_frozen_tower_runs_wholly_in_the_type_of_autocast_and_casts_no_weight_again(tower):
    with torch.autocast("cpu", torch.bfloat16):
        tower.encode(IMAGES)
        with Operations() as operations:
            tower.encode(IMAGES)
    casts = [name for name, _ in operations.seen if name == "aten::_to_copy"]
    assert len(casts) == 1  # of the images
    # the statistics that layer norms return beside their results are fp32
    wide = {name for name, dtype in operations.seen if dtype == torch.float32} - {"aten::native_layer_norm"}
    assert not {name for name in wide if "attention" not in name}


def test_a_low_precision_copy_is_no_part_of_the_model(tower):
    names, plain = list(tower.state_dict()), tower.encode(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        tower.encode(IMAGES)
    assert list(tower.state_dict()) == names
    assert all(
        t.dtype != torch.bfloat16 for t in (*tower.parameters(), *tower.buffers(), *deepcopy(tower).parameters())
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.values(), tower.encode(IMAGES).values(), strict=True))


def in_place(tower: nn.Module, state: dict[str, torch.Tensor]) -> None:
    tower.load_state_dict(state)


def assigned(tower: nn.Module, state: dict[str, torch.Tensor]) -> None:
    tower.load_state_dict(state, assign=True)


def replaced(tower: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, parameter in tower.named_parameters():
        parameter.data = state[name]


@pytest.mark.parametrize("change", [in_place, assigned, replaced])
def test_changed_weights_are_noticed(change):
    backbone, fresh = convnext(), convnext()
    state = {name: value * 1.1 for name, value in backbone.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        before = backbone.encode(IMAGES)["res5"]
        for one in (backbone, fresh):
            change(one, state)
        after, expected = backbone.encode(IMAGES)["res5"], fresh.encode(IMAGES)["res5"]
    assert torch.equal(after, expected)
    assert not torch.equal(after, before)


def test_those_who_share_a_frozen_tower_share_its_copy(monkeypatch):
    from dearli_d2.modeling import precision

    backbone = convnext()
    teacher = deepcopy(backbone, {id(backbone.clip_model): backbone.clip_model})
    with torch.autocast("cpu", torch.bfloat16):
        expected = backbone.encode(IMAGES)["res5"]
        monkeypatch.setattr(precision, "_Copy", None)  # no second one is made
        assert torch.equal(teacher.encode(IMAGES)["res5"], expected)


def test_a_trainable_tower_keeps_its_sums_in_fp32():
    backbone = convnext(frozen=False)
    with torch.autocast("cpu", torch.bfloat16):
        features = backbone.encode(IMAGES)
    assert features["res2"].dtype == torch.float32
    features["res2"].sum().backward()
    assert backbone.clip_model.visual.trunk.stem[0].weight.grad is not None
