"""A model as one traced graph from a normalised image to what read-outs are made of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import timm.layers.padding
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from ..deploy.metadata import CLASS_ALPHA, CLASS_EMBEDDINGS, IMAGE
from ..modeling.segmenter import Segmenter, Words
from .description import Size

Inputs = dict[str, torch.Tensor]


class Network(nn.Module):
    """The part of a model that becomes a graph.

    Args:
        model: in eval mode.
        caption: of all images, for a model that reads captions; "" for others.
    """

    def __init__(self, model: Segmenter, caption: str = "") -> None:
        super().__init__()
        self.model = model
        self.samples = [{"caption": caption}] if caption else None

    def forward(
        self, image: torch.Tensor, class_embeddings: torch.Tensor | None = None, class_alpha: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """See `dearli_d2.deploy.metadata`; every output is in float32."""
        if class_embeddings is None:
            outputs = self.model.raw_outputs(image, self.samples)
        else:
            outputs = self.model.raw_outputs_of(image, class_embeddings, class_alpha)
        return {name: output.float() for name, output in outputs.items()}


@dataclass(frozen=True)
class Examples:
    """Inputs to trace and to check a graph.

    Args:
        model: whose inputs they are.
        static: fixed (H, W) of the image; None = free.
        words: of the model, where its classes are an input.
    """

    model: Segmenter
    static: Size | None = None
    words: Words | None = None

    def of(self, batch: int, height: int, width: int) -> Inputs:
        """Smooth random images, their sides in multiples of the divisor, and the words.

        Args:
            batch: number of images.
            height, width: sides beyond the least ones, as multiples; not used with `static`.
        """
        size = self.static
        if size is None:
            divisor, least = self.model.fitting.divisor, self.model.fitting.least
            base = -(-least // divisor)
            size = ((base + height) * divisor, (base + width) * divisor)
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(batch, 3, *(max(side // 16, 2) for side in size), generator=generator)
        inputs = {
            IMAGE: F.interpolate(coarse, size=size, mode="bilinear")
            + 0.1 * torch.randn(batch, 3, *size, generator=generator)
        }
        if self.words is not None:
            inputs[CLASS_EMBEDDINGS] = self.words.embeddings.cpu()
            if self.words.alpha is not None:
                inputs[CLASS_ALPHA] = self.words.alpha.cpu()
        return inputs

    @property
    def free_sizes(self) -> dict[str, dict[int, Dim]]:
        """The dimensions of each input that are free."""
        divisor, batch = self.model.fitting.divisor, Dim("batch")
        sizes = {IMAGE: {0: batch}}
        if self.static is None:
            sizes[IMAGE] |= {2: divisor * Dim("height", min=2), 3: divisor * Dim("width", min=2)}
        if self.words is not None:
            classes = Dim("classes", min=2)
            sizes[CLASS_EMBEDDINGS] = {0: classes, 1: Dim("names")}
            if self.words.alpha is not None:
                sizes[CLASS_ALPHA] = {0: classes}
        return sizes


@torch.no_grad()
def trace(network: Network, examples: Examples) -> ExportedProgram:
    """The graph of a network, with as many free sizes as `examples` allows.

    The network has run once before: text embeddings and other constants are then known.
    """
    inputs = examples.of(2, 3, 4)
    network(**inputs)
    with _fixed_padding(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (), kwargs=inputs, dynamic_shapes=examples.free_sizes, strict=False)
    _drop_unused(program)
    return program


def _drop_unused(program: ExportedProgram) -> None:
    """Drops weights that no output depends on, such as a text tower whose embeddings are constants."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    specs = program.graph_signature.input_specs
    unused = [
        (node, spec)
        for node, spec in zip(placeholders, specs, strict=True)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and not node.users
    ]
    for node, spec in unused:
        program.graph.erase_node(node)
        specs.remove(spec)
        program.state_dict.pop(str(spec.target), None)
    program.graph_module.recompile()


@contextmanager
def _fixed_padding() -> Iterator[None]:
    """Padding that timm calls "same" does not depend on the map whose sides are multiples of the stride."""

    def padding(x: int, kernel_size: int, stride: int, dilation: int) -> int:
        return max((kernel_size - 1) * dilation + 1 - stride, 0)

    own, timm.layers.padding.get_same_padding = timm.layers.padding.get_same_padding, padding
    try:
        yield
    finally:
        timm.layers.padding.get_same_padding = own
