"""Kernel launches, bytes and copies of one training step on a GPU, counted without a GPU.

    python -m benchmarks.launches --size 640 --images 8
    python -m benchmarks.launches --lines 30

The step is that of the trainer. Its tensors are fake: they have a shape, a type and the device "cuda", but no content. Every operator
that PyTorch would launch on a GPU is counted, after autocast and differentiation. Operators that only make a view or allocate memory
are not counted.

Bytes are the inputs and outputs of each launch, each read or written once. Caches and repeated reads are not seen. One operator counts
as one launch, although a few launch two or three kernels, such as a sort or the backward pass of a convolution. Kernels in Triton
count as on a GPU that has Triton.
"""

from __future__ import annotations

import argparse
import collections
import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dearli_d2.config import get_config
from dearli_d2.engine.optimizer import autocast, build_clipping, build_optimizer
from dearli_d2.engine.step import stacked
from dearli_d2.engine.strong_views import build_strong_views
from dearli_d2.engine.teacher import build_labeler
from dearli_d2.modeling import build_model
from dearli_d2.rehearsal import MadeUpArrays, MadeUpValues, blank_batch, made_up_taxonomy, without_start

REPO = Path(__file__).parents[1]
CONFIG = REPO / "configs" / "ade20k" / "dear_convnext_b.yaml"
_NO_LAUNCH = ("detach", "alias", "_unsafe_view", "_local_scalar_dense", "is_pinned", "empty", "empty_strided", "empty_like",
              "new_empty", "new_empty_strided")  # fmt: skip
_PER_LAUNCH = 60  # about the number of tensors that one multi-tensor kernel takes


class Counter(TorchDispatchMode):
    """Counts the operators that run inside of the context.

    Attributes:
        launches, bytes: by (part, line of our code, operator).
        copies: number and bytes of the copies between host and device, by direction.
        waits: number of times that the host asks for a value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self.bytes: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self.copies: dict[str, list[int]] = {"to the device": [0, 0], "to the host": [0, 0]}
        self.waits = 0
        self.part = "other"
        self.line: str | None = None  # in the backward pass, that of the forward pass

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Counts what runs inside for `part`. Of nested parts the innermost counts."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        if func.namespace == "prim":
            return result
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        written = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        devices = {t.device.type for t in (*read, *written)}
        if name == "_local_scalar_dense" and "cuda" in devices:
            self.waits += 1
        if name in ("copy_", "_to_copy") and devices == {"cpu", "cuda"}:
            count = self.copies["to the device" if written[0].device.type == "cuda" else "to the host"]
            count[0] += 1
            count[1] += _touched(written[:1])
            return result
        if "cuda" not in devices or func.is_view or name in _NO_LAUNCH:
            return result
        lists = [len(a) for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], torch.Tensor)]
        multi = name.startswith(("_foreach", "_fused"))
        key = (self.part, self.line or _own_line(), name)
        self.launches[key] += -(-max(lists, default=1) // _PER_LAUNCH) if multi else 1
        reads = [] if name.startswith(("zero", "fill", "ones", "full", "uniform")) else read
        self.bytes[key] += _touched([*reads, *(t for t in written if not any(t is r for r in reads))])
        if func._schema.name.endswith("_") and read:
            self.bytes[key] += _touched(read[:1])  # what is written in place
        return result


def _touched(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of memory. An expanded dimension counts once."""
    total = 0
    for tensor in tensors:
        count = tensor.element_size()
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            count *= size if stride or not size else 1
        total += count
    return total


def _own_line() -> str:
    """The innermost line of the project below the caller."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(REPO / "dearli_d2")) and not path.endswith("rehearsal.py"):
            return f"{Path(path).relative_to(REPO / 'dearli_d2')}:{frame.f_lineno}"
        frame = frame.f_back
    return "torch"


# ------------------------------------------------------------------------------------------ a GPU that is not there


@contextmanager
def pretended_cuda() -> Iterator[FakeTensorMode]:
    """Lets fake tensors and autocast use the device "cuda" without a GPU."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    patches = (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.nn.utils.clip_grad._has_foreach_support", return_value=True),  # fake tensors have none
        mock.patch("dearli_d2.modeling.mask2former.deformable_attention._triton_runs_on", return_value=True),
        mock.patch("dearli_d2.modeling.mask2former.residual_norm_triton.runs_on", return_value=True),
        mock.patch("dearli_d2.modeling.mask2former.inference.enlarges_in_place", return_value=True),
        mock.patch("dearli_d2.modeling.mask_classifier.enlarges_in_place", return_value=True),
    )
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for patch in patches:
            stack.enter_context(patch)
        yield fake


class _FusedAttention(TorchFunctionMode):
    """Replaces attention by the fused kernel that PyTorch chooses on a GPU. A bool mask becomes one that is added, as there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention or args[0].device.type != "cuda":
            return func(*args, **kwargs)
        query, key, value, *rest = args
        mask = kwargs.get("attn_mask", rest[0] if rest else None)
        if mask is not None:
            added = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, -torch.inf)
            mask = added.expand(*query.shape[:-1], key.shape[-2])
        attend = torch.ops.aten._scaled_dot_product_efficient_attention
        return attend(query, key, value, mask, query.requires_grad or key.requires_grad)[0]


def _on_cuda(model: nn.Module, fake: FakeTensorMode) -> nn.Module:
    """A copy of the model whose tensors are fake and on "cuda"."""
    with FakeCopyMode(fake):
        model = copy.deepcopy(model)
    known: dict[int, torch.Tensor] = {}
    with fake:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    moved = nn.Parameter(parameter.detach().to("cuda"), parameter.requires_grad)
                    module._parameters[name] = known.setdefault(id(parameter), moved)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = known.setdefault(id(buffer), buffer.to("cuda"))
    return model


def backward(loss: torch.Tensor, counter: Counter) -> None:
    """Runs the backward pass of a graph node by node, since PyTorch's own engine needs a real device.

    Under anomaly detection each node knows the line of its forward pass. `counter` counts the node for that line.
    """
    root = loss.grad_fn
    waiting: collections.Counter[Any] = collections.Counter()
    stack, seen = [root], {root}
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is None:
                continue
            waiting[node] += 1
            if node not in seen:
                seen.add(node)
                stack.append(node)
    gradients: dict[Any, dict[int, torch.Tensor]] = {root: {0: torch.ones_like(loss)}}
    ready = [root]
    while ready:
        node = ready.pop()
        given = gradients.pop(node, {})
        results: Sequence[Any] = ()
        if given and not node.name().endswith("AccumulateGrad"):
            counter.line = _line_of(node)
            values = [given.get(i) for i in range(len(node._input_metadata))]
            call: Callable[..., Any] = node.apply if hasattr(node, "_forward_cls") else node
            with torch.no_grad():
                results = call(*values)
            results = results if isinstance(results, tuple) else (results,)
        elif given:
            variable, gradient = node.variable, given[0]
            variable.grad = gradient if variable.grad is None else variable.grad + gradient
        if len(results) and hasattr(node, "needs_input_grad"):  # a Function of Python gives a result for each argument
            wanted = iter([r for r, needed in zip(results, node.needs_input_grad, strict=True) if needed])
            results = [None if after is None else next(wanted) for after, _ in node.next_functions]
        for index, (after, slot) in enumerate(node.next_functions):
            if after is None:
                continue
            result = results[index] if results else None
            if result is not None:
                result = _fitted(result, after, slot)
                slots = gradients.setdefault(after, {})
                slots[slot] = result if slot not in slots else slots[slot] + result
            waiting[after] -= 1
            if not waiting[after]:
                ready.append(after)
    counter.line = None


def _fitted(gradient: torch.Tensor, node: Any, slot: int) -> torch.Tensor:
    """The gradient with the shape and type that the node expects. PyTorch's engine sums and casts in the same way."""
    expected = node._input_metadata[slot]
    if gradient.shape != expected.shape:
        gradient = gradient.sum_to_size(expected.shape)
    return gradient.to(expected.dtype)


def _line_of(node: Any) -> str:
    for text in reversed(node.metadata.get("traceback_", [])):
        if str(REPO / "dearli_d2") in text and "rehearsal.py" not in text:
            path, line = text.split('"')[1], text.split("line ")[1].split(",")[0]
            return f"{Path(path).relative_to(REPO / 'dearli_d2')}:{line}"
    return "torch"


# ------------------------------------------------------------------------------------------ the step


def _wrapped(owner: object, attribute: str, counter: Counter, part: str) -> None:
    original = getattr(owner, attribute)

    def call(*args: Any, **kwargs: Any) -> Any:
        with counter.within(part):
            return original(*args, **kwargs)

    setattr(owner, attribute, call)


def step_config(size: int, images: int, file: Path = CONFIG) -> CfgNode:
    """A config in bf16 that needs no weights and no data. `images` are labelled, and as many are unlabelled."""
    options = {"MODEL.BACKBONE.WEIGHTS": "", "MODEL.TEXT.TEMPLATES": "name", "MODEL.DEVICE": "cpu", "SOLVER.AMP.ENABLED": True,
               "INPUT.CROP_SIZE": size, "SOLVER.IMS_PER_BATCH": images, "SSL.IMS_PER_BATCH": images}  # fmt: skip
    return get_config(file, [str(x) for pair in options.items() for x in pair])


def count_step(cfg: CfgNode) -> Counter:
    """Counts the second of two steps."""
    with without_start():
        model = build_model(cfg, made_up_taxonomy(cfg), load_backbone=False).train()
    counter = Counter()
    with pretended_cuda() as fake, ExitStack() as stack:
        model = _on_cuda(model, fake)
        for mode in (fake, MadeUpValues(fake), MadeUpArrays(), _FusedAttention(), EventStorage()):
            stack.enter_context(mode)
        stack.enter_context(model.rehearsing())
        stack.enter_context(torch.autograd.detect_anomaly(check_nan=False))
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "cuda"
        labeler, views = build_labeler(cfg, model), build_strong_views(cfg, model)
        optimizer = build_optimizer(cfg, model)
        clip = build_clipping(cfg, optimizer)
        parts = [(model, "student")] + ([(labeler.model, "teacher")] if hasattr(labeler, "model") else [])
        for who, name in parts:
            for owner, attribute, part in (
                (who.sem_seg_head.pixel_decoder, "forward", f"{name}: pixel decoder"),
                (who.sem_seg_head.predictor, "forward", f"{name}: transformer decoder"),
            ):
                _wrapped(owner, attribute, counter, part)
        _wrapped(model.backbone, "forward", counter, "backbone")
        _wrapped(model.criterion, "matcher", counter, "matching")
        _wrapped(model.criterion, "losses", counter, "losses")

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            batch = blank_batch(cfg)
            with autocast(cfg):
                with counter.within("teacher: rest"):
                    labels = labeler.label(batch["unlabeled"])
                with counter.within("strong views"):
                    batch["unlabeled"] = views(batch["unlabeled"], labels, np.random.default_rng(0))
                with counter.within("student: rest"):
                    losses = model(batch)
            with counter.within("backward"):
                backward(stacked(losses).sum(), counter)
            with counter.within("optimiser"):
                clip()
                optimizer.step()
            with counter.within("EMA"):
                labeler.follow(model, cfg.SSL.START)

        step()
        with counter:
            step()
    return counter


def table(counter: Counter, column: int) -> list[list[Any]]:
    """Launches and gigabytes by part (0), line (1) or operator (2)."""
    launches: collections.Counter[str] = collections.Counter()
    moved: collections.Counter[str] = collections.Counter()
    for key, count in counter.launches.items():
        launches[key[column]] += count
        moved[key[column]] += counter.bytes[key]
    rows = [[name, count, moved[name] / 1e9] for name, count in launches.items()]
    rows.sort(key=lambda row: -row[2])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.launches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", type=Path, default=CONFIG, help="config of a model with the decoders of Mask2Former"
    )
    parser.add_argument("--size", type=int, default=640, help="side of the crops in pixels")
    parser.add_argument("--images", type=int, default=8, help="number of labelled images, and of unlabelled ones")
    parser.add_argument(
        "--lines",
        type=int,
        default=0,
        metavar="N",
        help="also print the N lines and the N operators that move most bytes",
    )
    args = parser.parse_args()
    counter = count_step(step_config(args.size, args.images, args.config_file))
    rows = table(counter, 0)
    rows.append(["all", sum(counter.launches.values()), sum(counter.bytes.values()) / 1e9])
    print(tabulate(rows, ["part", "launches", "GB"], floatfmt=".1f", tablefmt="github"))
    for direction, (number, size) in counter.copies.items():
        print(f"copies {direction}: {number}, {size / 2**20:.1f} MiB")
    print(f"values that the host waits for: {counter.waits}")
    for column, name in ((1, "line"), (2, "operator")):
        if args.lines:
            print(
                tabulate(
                    table(counter, column)[: args.lines], [name, "launches", "GB"], floatfmt=".2f", tablefmt="github"
                )
            )


if __name__ == "__main__":
    main()
