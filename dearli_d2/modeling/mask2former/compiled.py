"""Compiles the decoders of Mask2Former in training with `torch.compile` (MODEL.COMPILE)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...errors import ConfigError
from .head import MaskFormerHead


def compile_decoders(model: nn.Module, device: torch.device, backend: str | Callable[..., Any] = "inductor") -> None:
    """Makes the decoders of a model run compiled, and those of its copies such as an EMA teacher.

    Names, weights and results stay the same. A graph is made for each new size of the input or the batch, which takes a minute or
    more.

    Args:
        model: not yet wrapped for data-parallel training.
        device: on which the model will run.
        backend: of `torch.compile`.

    Raises:
        ConfigError: the model has no such decoders, or nothing can be compiled on this device.
    """
    heads = [module for module in model.modules() if isinstance(module, MaskFormerHead)]
    if not heads:
        raise ConfigError(
            f"MODEL.COMPILE is True, but {type(model).__name__} has no decoders of Mask2Former to compile; set it to False"
        )
    _check_compiler(device, backend)
    # it would split the graphs by buckets of gradients, but all gradients of a decoder come at once
    torch._dynamo.config.optimize_ddp = False
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")  # of position encodings
    run = CompiledAtTrainingSizes(backend)
    for head in heads:
        head.run_decoder = run


class CompiledAtTrainingSizes:
    """Runs a decoder compiled at the input sizes of training, and uncompiled at all other sizes.

    A graph is made for each size. Training has few sizes, the images of an evaluation have many. Copies of a model share the sizes.
    """

    def __init__(self, backend: str | Callable[..., Any]) -> None:
        self.backend = backend
        self._sizes: set[torch.Size] = set()
        self._compiled: dict[type, Callable[..., Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledAtTrainingSizes:
        return self

    def __call__(self, decoder: nn.Module, size: torch.Size, *args: Any) -> Any:
        """The output of a decoder.

        Args:
            size: height and width of the finest map.
            args: of its `forward`.
        """
        if torch.is_grad_enabled() and decoder.training:
            self._sizes.add(size)
        if size not in self._sizes:
            return decoder(*args)
        kind = type(decoder)
        if kind not in self._compiled:
            self._compiled[kind] = torch.compile(kind.forward, dynamic=False, backend=self.backend)
        return self._compiled[kind](decoder, *args)  # makes a graph for each decoder of this type


def _check_compiler(device: torch.device, backend: str | Callable[..., Any]) -> None:
    try:
        torch.compile(_probe, backend=backend)(torch.ones(8, device=device))
    except Exception as error:  # of many types: without Triton or a compiler, on an unsupported GPU or Python
        last = str(error).strip().splitlines()[-1:] or [""]
        raise ConfigError(
            f"MODEL.COMPILE is True, but torch.compile does not work on {device} ({type(error).__name__}: {last[0]}). It needs "
            "Triton and a C compiler for a GPU, and a C++ compiler (Debian's package g++) for a CPU. Install them, or set it to "
            "False"
        ) from error


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
