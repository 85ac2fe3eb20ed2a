"""Linear layers with the faster matrix product of a CPU.

PyTorch multiplies fp32 matrices with MKL, which uses half of the vector width of AMD processors with AVX-512. oneDNN, which PyTorch
uses for convolutions, uses all of it and takes about half the time there. On other devices, for other types, and while a graph is
recorded, the layers are PyTorch's own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_BLOCK = 1024  # tokens whose hidden features stay in the cache
_LEAST_PRODUCTS = 2**22  # multiplications; with fewer, the longer call costs more than the faster product saves


class Linear(nn.Linear):
    """`nn.Linear` that computes with `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Computes `x @ weight.T + bias` as `F.linear` does. On a CPU it has no second derivatives.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).

    Returns:
        (..., out).
    """
    if not _takes_onednn(x, weight):
        return F.linear(x, weight, bias)
    result: torch.Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)
    return result if x.dim() == 2 else result.unflatten(0, x.shape[:-1])


def feed_forward(x: torch.Tensor, first: nn.Linear, second: nn.Linear) -> torch.Tensor:
    """Computes `second(relu(first(x)))`.

    On a CPU the tokens come in blocks whose hidden features stay in the cache. The backward pass computes the hidden features again.
    They are several times as large as the tokens, and new memory for them would cost as much time as the product.

    Args:
        x: (..., C).
        first: C to hidden channels.
        second: hidden channels to C.
    """
    if _takes_onednn(x, first.weight):
        result: torch.Tensor = _FeedForward.apply(
            x.flatten(0, -2), first.weight, first.bias, second.weight, second.bias
        )
        return result.unflatten(0, x.shape[:-1])
    # on (B N, C), where the result of a linear layer is no view: ReLU can then work in place without a copy
    return second(F.relu_(first(x.flatten(0, -2)))).unflatten(0, x.shape[:-1])


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Batched product of (B, M, K) and (B, K, N) matrices. It has no gradient on a CPU."""
    if not computes_here(a) or not len(a) or not _takes_onednn(a[0], b[0].mT):
        return torch.bmm(a, b)
    products = [_onednn(left, right.mT, None) for left, right in zip(a, b, strict=True)]
    return products[0][None] if len(products) == 1 else torch.stack(products)


def with_fast_products(module: nn.Module) -> nn.Module:
    """Turns each `nn.Linear` in a module into a `Linear` of the same name and parameters. Subclasses of `nn.Linear` are left alone."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear
    return module


def computes_here(x: torch.Tensor) -> bool:
    """True for a real tensor on a CPU. False for fake tensors, and while a graph is recorded."""
    return x.device.type == "cpu" and type(x) in (torch.Tensor, nn.Parameter) and not torch.compiler.is_compiling()


def _takes_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        computes_here(x)
        and x.dtype == weight.dtype == torch.float32
        and x.dim() > 1
        and x.numel() * weight.shape[0] >= _LEAST_PRODUCTS
        and not torch.is_autocast_enabled("cpu")
        and _onednn_is_faster()
    )


@cache
def _onednn_is_faster() -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        "AVX512" in capability
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none") -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _onednn(grad, weight.mT, None) if needs_x else None,
            _onednn(grad.mT, x.mT, None) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


class _FeedForward(torch.autograd.Function):
    """Saves only its inputs for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x, w1, b1, w2)
        result = torch.empty(len(x), len(w2))
        for tokens, part in zip(x.split(_BLOCK), result.split(_BLOCK), strict=True):
            part.copy_(_onednn(_onednn(tokens, w1, b1, "relu"), w2, b2))
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, w1, b1, w2 = ctx.saved_tensors
        grad_x, sums = torch.empty_like(x), [torch.zeros_like(w) for w in (w1, b1, w2)]
        for tokens, upstream, part in zip(*(t.split(_BLOCK) for t in (x, grad, grad_x)), strict=True):
            hidden = _onednn(tokens, w1, b1, "relu")
            grad_hidden = _onednn(upstream, w2.mT, None)
            torch.ops.aten.threshold_backward.grad_input(grad_hidden, hidden, 0, grad_input=grad_hidden)
            part.copy_(_onednn(grad_hidden, w1.mT, None))
            parts = _onednn(grad_hidden.mT, tokens.mT, None), grad_hidden.sum(0), _onednn(upstream.mT, hidden.mT, None)
            for total, one in zip(sums, parts, strict=True):
                total += one
        return grad_x, *sums, grad.sum(0)
