"""Compiled decoders give the results of plain ones, and run only at the sizes of training."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch._dynamo.backends.registry import lookup_backend
from torch.nn.parallel import DistributedDataParallel

from dearli_d2.errors import ConfigError
from dearli_d2.modeling.mask2former.compiled import compile_decoders
from dearli_d2.modeling.mask2former.head import MaskFormerHead
from dearli_d2.modeling.mask2former.pixel_decoder import MSDeformAttnPixelDecoder
from dearli_d2.modeling.mask2former.transformer_decoder import MLP, DecoderOutput, MultiScaleMaskedTransformerDecoder

CHANNELS = {"res2": 8, "res3": 8, "res4": 8, "res5": 8}
CPU = torch.device("cpu")


def decoders() -> MaskFormerHead:
    torch.manual_seed(0)
    head = MaskFormerHead(
        MSDeformAttnPixelDecoder(CHANNELS, 16, 16, 16, 2, 1, layers=1),
        MultiScaleMaskedTransformerDecoder(
            16, MLP(16, 16, 8, 2), dim=16, mask_dim=16, num_queries=4, heads=2, feedforward_dim=16, layers=1
        ),
    )
    offsets = head.pixel_decoder.transformer.encoder.layers[0].self_attn.sampling_offsets
    # not on the grid, where the gradient of bilinear sampling jumps
    nn.init.uniform_(offsets.bias, -2, 2, generator=torch.Generator().manual_seed(0))
    return head


def maps(side: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(2, channels, side // 2**level, side // 2**level, generator=generator)
        for level, (name, channels) in enumerate(CHANNELS.items())
    }


def step(head: nn.Module, features: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    output: DecoderOutput = head(features)
    loss = output.class_outputs.square().mean() + output.mask_logits().square().mean()
    loss.backward()
    return loss, {name.removeprefix("module."): p.grad for name, p in head.named_parameters()}


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_compiled_decoders_equal_plain_ones_under_ddp_and_as_a_teacher(one_rank):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    plain, student = decoders(), decoders()
    compile_decoders(student, CPU, backend)
    graphs.clear()
    teacher = deepcopy(student).eval().requires_grad_(False)
    assert list(student.state_dict()) == list(teacher.state_dict()) == list(plain.state_dict())
    expected, gradients = step(plain, maps(16))
    loss, found = step(DistributedDataParallel(student), maps(16))
    assert len(graphs) == 2  # one for each decoder: nothing breaks it
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for side, count in ((8, 2), (16, 4)):  # no image had a side of 8 in training
            found = teacher(maps(side)).mask_embeddings
            assert torch.equal(found, plain(maps(side)).mask_embeddings)
            assert len(graphs) == count


def test_what_cannot_be_compiled_is_an_error(monkeypatch):
    with pytest.raises(ConfigError, match=r"MODEL.COMPILE is True, but Linear has no decoders"):
        compile_decoders(nn.Linear(2, 2), CPU, "eager")

    def missing(*args, **kwargs):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(ConfigError, match=r"torch.compile does not work on cpu \(RuntimeError: no C compiler\).*g\+\+"):
        compile_decoders(decoders(), CPU)
