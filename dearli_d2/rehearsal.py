"""A training step without its numbers: every operation of the real code, on tensors that have shapes and no content.

The weights are those of the config's model without a start, the images are blank, and PyTorch's fake tensors carry shapes, types and
memory through the losses, the backward pass, the optimiser and the teacher. So a step of any size takes seconds on a CPU. Counted are

    operations  2 x multiply-adds of matrix products, convolutions and attention, by PyTorch's `FlopCounterMode`. What is done element
                by element, such as bilinear sampling, is not counted.
    peak        the largest sum of bytes of tensors that are alive at the same time.

Some code asks for values: how many queries are objects, which clusters are similar. It gets made-up answers, for which every image has
`SEGMENTS` segments.
"""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from .data.taxonomy import Taxonomy, spread_colors
from .engine.checks import check_batches
from .engine.optimizer import autocast, build_clipping, build_optimizer
from .engine.step import Batch, stacked
from .engine.strong_views import build_strong_views
from .engine.teacher import build_labeler
from .methods import method_of
from .modeling import build_model
from .modeling.segmenter import Segmenter
from .structures import Targets

SEGMENTS, AGNOSTIC_SEGMENTS = 10, 30
"""Segments of an image, annotated or found by the teacher; class-agnostic masks of an image."""

_LARGE = 2**16  # numbers in a tensor; larger ones have no content
_aten = torch.ops.aten


@dataclass(frozen=True)
class Rehearsal:
    """The needs of one training step.

    Attributes:
        operations: floating-point operations (2 per multiply-add) of matrix products, convolutions and attention.
        peak: bytes of the tensors that are alive together, at most.
        fixed: bytes of weights, gradients, optimiser and teacher, between two steps.
        trainable, frozen: numbers of parameters.
        images: that the student trains on.
    """

    operations: int
    peak: int
    fixed: int
    trainable: int
    frozen: int
    images: int


def rehearse(cfg: CfgNode, unlabeled: bool = True) -> Rehearsal:
    """Goes through one training step of a config on one device.

    Args:
        cfg: the config; neither its data nor its weights need to be there.
        unlabeled: False leaves the unlabelled images out, as before SSL.START.

    Raises:
        ConfigError: batches that a training refuses.
    """
    check_batches(cfg, processes=1)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    if not unlabeled:
        cfg.DATASETS.UNLABELED = ()
    with without_start():
        model = build_model(cfg, made_up_taxonomy(cfg), load_backbone=False).train()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(fake):
        model = copy.deepcopy(model)
    parameters = list(model.parameters())
    memory, operations = LiveBytes(), count_operations()
    with ExitStack() as stack:
        for mode in (fake, MadeUpValues(fake), memory, MadeUpArrays(), EventStorage()):
            stack.enter_context(mode)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by the copy of a teacher
        stack.enter_context(model.rehearsing())
        memory.note(model)
        step = _Step(cfg, model)
        memory.restart()
        with operations:
            images = step() if cfg.DATASETS.TRAIN or cfg.DATASETS.SOURCE else 0
        gc.collect()  # fake tensors hang in cycles that real ones do not have
        fixed = memory.now
    return Rehearsal(
        operations.get_total_flops(),
        memory.peak,
        fixed,
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.numel() for p in parameters if not p.requires_grad),
        images,
    )


class _Step:
    """The trainer's step, whose optimiser has its state already."""

    def __init__(self, cfg: CfgNode, model: Segmenter) -> None:
        self.cfg, self.model = cfg, model
        self.labeler = build_labeler(cfg, model)
        self.views = build_strong_views(cfg, model)
        self.optimizer = build_optimizer(cfg, model)
        self.clip = build_clipping(cfg, self.optimizer)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()

    def __call__(self) -> int:
        self.optimizer.zero_grad(set_to_none=True)
        images = 0
        for _ in range(self.cfg.SOLVER.ACCUMULATION_STEPS):
            images += self._part()
        self.clip()
        self.optimizer.step()
        if self.labeler is not None:
            self.labeler.follow(self.model, self.cfg.SSL.START)
        return images

    def _part(self) -> int:
        batch = blank_batch(self.cfg)
        if self.labeler is not None:
            with autocast(self.cfg):
                labels = self.labeler.label(batch["unlabeled"])
                batch["unlabeled"] = self.views(batch["unlabeled"], labels, np.random.default_rng(0))
        with autocast(self.cfg):
            losses = self.model(batch)
        stacked(losses).sum().backward()
        return sum(len(samples) for samples in batch.values())


def blank_batch(cfg: CfgNode) -> Batch:
    """Samples of each stream of a config, as its mappers make them, without content."""
    batch = {}
    if cfg.DATASETS.TRAIN:
        batch["labeled"] = [_labeled(cfg) for _ in range(cfg.SOLVER.IMS_PER_BATCH)]
    if cfg.DATASETS.SOURCE:
        batch["source"] = [_labeled(cfg) for _ in range(cfg.SSL.SOURCE_IMS_PER_BATCH)]
    if cfg.DATASETS.UNLABELED:
        size = (cfg.SSL.STRONG_VIEWS, 3, cfg.INPUT.CROP_SIZE, cfg.INPUT.CROP_SIZE)
        batch["unlabeled"] = [
            {**_view(cfg), "strong": torch.zeros(size, dtype=torch.uint8)} for _ in range(cfg.SSL.IMS_PER_BATCH)
        ]
    return batch


def _view(cfg: CfgNode) -> dict[str, Any]:
    side = cfg.INPUT.CROP_SIZE
    return {
        "image": torch.zeros(3, side, side, dtype=torch.uint8),
        "inside": torch.ones(side, side, dtype=torch.bool),
        "caption": "a photo of a street with cars, people, trees and buildings",
        "file_name": "",
    }


def _labeled(cfg: CfgNode) -> dict[str, Any]:
    side, classes = cfg.INPUT.CROP_SIZE, max(cfg.MODEL.NUM_CLASSES - len(cfg.DATASETS.UNSEEN_CLASSES), 1)
    count = AGNOSTIC_SEGMENTS if cfg.MODEL.CLASSIFIER == "none" else SEGMENTS
    labels = len(cfg.DATASETS.UNSEEN_CLASSES) + torch.arange(count) % classes
    masks, valid = torch.zeros(count, side, side, dtype=torch.bool), torch.ones(side, side, dtype=torch.bool)
    targets = Targets(labels, masks, valid)
    sample = {**_view(cfg), "targets": targets}
    return {**sample, **method_of(cfg).blank_sample(cfg)}


def made_up_taxonomy(cfg: CfgNode) -> Taxonomy | None:
    """Makes as many classes as a config has, by number: the data need not be there. Unseen ones have their names and come first."""
    if cfg.MODEL.CLASSIFIER == "none":
        return None
    count = cfg.MODEL.NUM_CLASSES
    names = [*cfg.DATASETS.UNSEEN_CLASSES, *(f"class {i}" for i in range(count))][:count]
    return Taxonomy(tuple((name,) for name in names), frozenset(), tuple(range(count)), tuple(spread_colors(count)))


# ------------------------------------------------------------------------------------------ counting


def count_operations() -> FlopCounterMode:
    """PyTorch's counter, of the whole and not by module, which also knows the attention of a CPU. Inside of it `get_total_flops()` grows."""

    def forward(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kw: Any) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))

    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            _aten._scaled_dot_product_flash_attention_for_cpu: forward,
            _aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        },
    )
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


class _NoModules(nullcontext[None]):
    """In place of the counter's own tracker of modules.

    Its hooks keep the tensors of blocks that are computed again: no memory would seem to be saved.
    """

    parents = ("Global",)


class LiveBytes(TorchDispatchMode):
    """Sums the bytes of the tensors that operations inside of it make, for as long as they are alive, real or fake.

    torch's own `MemTracker` cannot follow a model with frozen parameters.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf)
        return result

    def note(self, model: nn.Module) -> None:
        """Adds the parameters and buffers of a model, which were made before."""
        for tensor in (*model.parameters(), *model.buffers()):
            self._note(tensor)

    def restart(self) -> None:
        """Forgets the peak."""
        self.peak = self.now

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


# ------------------------------------------------------------------------------------------ made-up content


class MadeUpValues(TorchDispatchMode):
    """Answers what code asks of tensors without content, and computes small tensors that depend on none of them.

    A scalar is 0. Of a mask `SEGMENTS` entries are set. A small tensor into which others are written holds ones for the first
    `SEGMENTS` columns.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if not any(isinstance(t, FakeTensor) for t in tensors):
            return self._real(func, args, kwargs, tensors)
        if func is _aten._local_scalar_dense.default:
            return False if tensors[0].dtype is torch.bool else 0.0 if tensors[0].is_floating_point() else 0
        if func is _aten.nonzero.default:
            return _rows(tensors[0])
        if func is _aten.equal.default:
            return True
        if func is _aten.bincount.default:
            return tensors[0].new_ones(kwargs.get("minlength", args[-1] if isinstance(args[-1], int) else SEGMENTS))
        if func in _INDEXING:
            indices = [part for index in args[1] for part in _as_numbers(index)]
            args = (args[0], indices, *args[2:])
        result = func(*args, **kwargs)
        target = args[0]
        if func._schema.name.endswith("_") and isinstance(target, torch.Tensor) and not isinstance(target, FakeTensor):
            with unset_fake_temporarily(), torch.no_grad():
                target.zero_()[..., :SEGMENTS] = 1
        return result

    def _real(self, func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> Any:
        device = kwargs.get("device")
        if all(t.numel() <= _LARGE for t in tensors) and (device is None or torch.device(device).type == "cpu"):
            fake = None if tensors else func(*args, **kwargs)
            if tensors or all(t.numel() <= _LARGE for t in tree_leaves(fake) if isinstance(t, torch.Tensor)):
                with unset_fake_temporarily():
                    return func(*args, **kwargs)
        return func(*args, **kwargs)


_INDEXING = (
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
)


def _rows(mask: torch.Tensor) -> torch.Tensor:
    with unset_fake_temporarily():
        if not isinstance(mask, FakeTensor):
            return mask.nonzero()
        return torch.zeros(min(mask.numel(), SEGMENTS), mask.dim(), dtype=torch.int64)


def _as_numbers(index: torch.Tensor | None) -> list[torch.Tensor | None]:
    """An index with a mask as indices with numbers."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    return list(_rows(index).unbind(1))


class MadeUpArrays(TorchFunctionMode):
    """numpy arrays of tensors without content hold zeros."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.numpy and isinstance(args[0], FakeTensor):
            return np.zeros(tuple(args[0].shape), str(args[0].dtype).removeprefix("torch."))
        return func(*args, **(kwargs or {}))


@contextmanager
def without_start() -> Iterator[None]:
    """Large tensors keep what memory holds: a model is built without the time that random weights take.

    Some starts draw again until no value is out of bounds. So no value of a large tensor is.
    """

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            target = args[0] if args else None
            if isinstance(target, torch.Tensor) and target.numel() > _LARGE and func._schema.name.endswith("_"):
                return target
            if isinstance(target, torch.Tensor) and target.numel() > _LARGE and func is _aten.any.default:
                return torch.tensor(False)
            return func(*args, **(kwargs or {}))

    with Mode():
        yield
