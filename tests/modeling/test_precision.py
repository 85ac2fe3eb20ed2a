"""Frozen towers and decoders with weights in the type of autocast: errors, number of casts, and how changed weights are noticed."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from timm.layers import StdConv2d
from timm.models.eva import EvaBlock
from torch import nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

from dearli_d2.engine.teacher import EMATeacher
from dearli_d2.modeling.backbone.open_clip import OpenCLIPBackbone, OpenCLIPConvNeXt, OpenCLIPViT
from dearli_d2.modeling.backbone.timm import TimmBackbone
from dearli_d2.modeling.mask2former.head import MaskFormerHead
from dearli_d2.modeling.mask2former.pixel_decoder import MSDeformAttnPixelDecoder
from dearli_d2.modeling.mask2former.transformer_decoder import MLP, DecoderOutput, MultiScaleMaskedTransformerDecoder
from dearli_d2.modeling.precision import low_precision, weights_cast_once
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
    """The names of what ran, each with the type and shape of its floating results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype, torch.Size]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.seen.append((func.name(), tensor.dtype, tensor.shape))
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
    casts = [name for name, _, _ in operations.seen if name == "aten::_to_copy"]
    assert len(casts) == 1  # of the images
    # the statistics that layer norms return beside their results are fp32
    wide = {name for name, dtype, _ in operations.seen if dtype == torch.float32} - {"aten::native_layer_norm"}
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


# ------------------------------------------------------------------------------------------ decoders


@pytest.fixture
def decoders() -> MaskFormerHead:
    torch.manual_seed(0)
    channels = {"res2": 16, "res3": 24, "res4": 32, "res5": 48}
    return MaskFormerHead(
        MSDeformAttnPixelDecoder(channels, 32, 32, 64, 4, 2, layers=2),
        MultiScaleMaskedTransformerDecoder(
            32, MLP(32, 32, 16, 3), dim=32, mask_dim=32, num_queries=6, heads=4, feedforward_dim=48, layers=3
        ),
    )


def maps() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = {"res2": (16, 32), "res3": (24, 16), "res4": (32, 8), "res5": (48, 4)}
    return {name: torch.randn(2, channels, side, side, generator=generator) for name, (channels, side) in sides.items()}


def one_by_one(head: MaskFormerHead, features: dict[str, torch.Tensor]) -> DecoderOutput:
    """As autocast alone casts."""
    return head.predictor(head.pixel_decoder(features))


def gradients(head: MaskFormerHead, run) -> dict[str, torch.Tensor]:
    head.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = run(head, maps())
        loss = output.class_outputs.float().square().mean() + output.mask_logits().float().square().mean()
    loss.backward()
    return {"loss": loss, **{n: p.grad for n, p in head.named_parameters() if p.grad is not None}}


def test_weights_cast_together_give_the_losses_and_gradients_of_autocast(decoders):
    decoders.predictor.mask_embed.requires_grad_(False)  # a part that is not trained has no gradient
    expected, found = gradients(decoders, one_by_one), gradients(decoders, MaskFormerHead.__call__)
    assert found.keys() == expected.keys()
    assert not any("mask_embed" in name for name in found)
    for name, gradient in expected.items():
        assert gradient.dtype == torch.float32
        assert torch.equal(found[name], gradient), name


def weight_casts(head: MaskFormerHead, run) -> tuple[int, int]:
    """Casts of single weights in a forward and a backward pass."""
    sizes = {p.shape for module in head.modules() for p in module._parameters.values() if p is not None}
    with Operations() as forward, torch.autocast("cpu", torch.bfloat16):
        output = run(head, maps())
        loss = output.class_outputs.float().square().mean() + output.mask_logits().float().square().mean()
    with Operations() as backward:
        loss.backward()
    return tuple(
        sum(name == "aten::_to_copy" and shape in sizes for name, _, shape in x.seen) for x in (forward, backward)
    )


def test_weights_and_their_gradients_are_not_cast_one_by_one(decoders):
    assert all(count > 50 for count in weight_casts(decoders, one_by_one))
    assert weight_casts(decoders, MaskFormerHead.__call__) == (0, 0)


def test_a_teacher_casts_its_weights_again_only_after_an_update(decoders, monkeypatch):
    copies, copy = [], torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *args: copies.append(1) or copy(*args))
    student = nn.Sequential(decoders)
    teacher = EMATeacher(student, decay=0.5, ramp=False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01, fused=True)
    for _ in range(2):
        gradients(decoders, MaskFormerHead.__call__)
        optimizer.step()
        teacher.update(student)
        for head in (decoders, teacher.model[0]):  # the student in evaluation, and the teacher
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                expected = one_by_one(head, maps()).mask_embeddings
                copies.clear()
                assert all(torch.equal(head(maps()).mask_embeddings, expected) for _ in range(2))
        assert len(copies) == 2  # of the teacher's two decoders


def test_weights_are_back_after_an_error(decoders):
    weights = dict(decoders.named_parameters())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(KeyError):
        decoders({"res2": maps()["res2"]})
    assert all(p is weights[name] and p.dtype == torch.float32 for name, p in decoders.named_parameters())
    assert len(dict(decoders.named_parameters())) == len(weights)


@pytest.mark.parametrize("arch", ["resnet18", "vit_tiny_patch16_224"])
def test_a_teachers_backbone_has_the_features_of_autocast(arch):
    torch.manual_seed(0)
    teacher = TimmBackbone(arch).eval().requires_grad_(False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = teacher.maps(IMAGES), teacher.model(IMAGES)
        with Operations() as operations:
            teacher.maps(IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    shapes = {p.shape for m in teacher.model.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in m.parameters()}
    assert not [shape for name, _, shape in operations.seen if name == "aten::_to_copy" and shape in shapes]


def test_a_convolution_that_standardises_its_weights_does_so_in_fp32():
    torch.manual_seed(0)
    layers = nn.Sequential(StdConv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layers(IMAGES)
        with weights_cast_once(layers, IMAGES.device):
            assert [layer.weight.dtype for layer in layers] == [torch.float32, torch.bfloat16]
            assert torch.equal(layers(IMAGES), expected)


def test_large_networks_keep_the_casts_of_autocast_where_they_have_gradients():
    """Their gradients then come during the backward pass, as data-parallel training needs."""
    layer = nn.Linear(3, 3)
    with torch.autocast("cpu", torch.bfloat16), weights_cast_once(layer, IMAGES.device, with_gradient=False):
        assert layer.weight.dtype == torch.float32


def test_a_copy_that_was_not_finished_is_not_used():
    network = nn.Linear(4, 4).requires_grad_(False)
    seen = []

    def simplify(_, made):
        seen.append(made)
        made.weight.zero_()
        if len(seen) == 1:
            raise MemoryError

    with pytest.raises(MemoryError):
        low_precision(network, torch.bfloat16, simplify)
    assert low_precision(network, torch.bfloat16, simplify) is seen[1]


def test_the_fused_blocks_of_eva_run_in_low_precision():
    torch.manual_seed(0)
    block = EvaBlock(32, 4, qkv_fused=True).eval().requires_grad_(False)
    torch.nn.init.normal_(block.attn.q_bias)
    x = torch.randn(2, 10, 32)
    half = low_precision(block, torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - block(x)).abs().mean() < 0.02 * block(x).abs().mean()


def test_a_fused_optimizer_between_two_evaluations_is_noticed():
    network, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(3, 8)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, fused=True)

    def run(trained: bool) -> torch.Tensor:
        network.requires_grad_(trained)
        with torch.autocast("cpu", torch.bfloat16), weights_cast_once(network, x.device):
            return network(x)

    run(False)
    run(True).sum().backward()
    optimizer.step()
    found = run(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found, network(x))


def test_pruning_after_the_first_pass_is_noticed():
    network, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(3, 8)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), weights_cast_once(network, x.device):
            found = network(x)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert torch.equal(found, network(x))
        prune.random_unstructured(network[0], "weight", 0.5)
