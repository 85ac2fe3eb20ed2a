"""Casts weights to the type of autocast together and rarely, instead of one by one in every pass.

Autocast casts each weight where it is used. It keeps the result only for whole weights that need a gradient, and only within one
context. It also runs norms, and with them the sums of residual networks, in fp32.

- `low_precision` is for a frozen network that may run wholly in the type of autocast.
- `weights_cast_once` changes no result: autocast stays on, and finds no weight left to cast.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.autograd.function import once_differentiable

Network = TypeVar("Network", bound=nn.Module)
Slot = tuple[dict[str, nn.Parameter | None], str]  # the parameters of a module, and the name of one of them


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The type of autocast on a device; None = autocast is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def low_precision(
    network: Network, dtype: torch.dtype, simplify: Callable[[Network, Network], None] | None = None
) -> Network:
    """A copy of a frozen network whose weights have another type, for use without autocast.

    It is made once, and again after the weights have changed. It belongs to no module, so no state dict contains it, and all models
    that share the network share it. Buffers are those of the network and keep their type, since tables of angles need its precision.

    Args:
        network: in eval mode.
        dtype: of the weights. Those of convolutions are stored with their channels last.
        simplify: called with the network and the new copy, which it may change.
    """
    made = _COPIES.get(network)
    if made is None or made.dtype != dtype or made.state.changed():
        made = _Copy(network, dtype)
        if simplify is not None:
            with torch.inference_mode(False), torch.no_grad():
                simplify(network, made.network)  # type: ignore[arg-type]
        _COPIES[network] = made  # at last: other threads, and a call after an error, must not find half of it
    return made.network  # type: ignore[return-value]


@contextmanager
def weights_cast_once(network: nn.Module, device: torch.device, with_gradient: bool = True) -> Iterator[None]:
    """Gives the matrices of a network the type of autocast inside of the context. Without autocast it does nothing.

    All weights are cast by a few kernels, and so are their gradients. The cast weights of a network that is not trained, such as a
    teacher, are kept until the weights change. Values and gradients are those of autocast. One thread at a time runs the network.

    Args:
        network: linear layers, convolutions and attention in it run under autocast.
        device: of its tensors.
        with_gradient: False = do nothing while gradients are recorded. Large networks need this. Their gradients would otherwise come
            all at once at the end of the backward pass, and processes could not exchange them during it.
    """
    dtype = autocast_type(device)
    if dtype is None or (torch.is_grad_enabled() and not with_gradient):
        yield
        return
    cast = _WEIGHTS.get(network)
    if cast is None or cast.dtype != dtype or not cast.fits():
        cast = _WEIGHTS[network] = _CastWeights(network, dtype)
    with cast.lock:
        weights = [owner[name] for owner, name in cast.slots]
        try:
            for (owner, name), low in zip(cast.slots, cast.current(), strict=True):
                owner[name] = low  # type: ignore[assignment]
            yield
        finally:
            for (owner, name), weight in zip(cast.slots, weights, strict=True):
                owner[name] = weight


class _CastWeights:
    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self.dtype, self.slots = dtype, parameter_slots(network, _is_cast)
        self.lock = threading.RLock()
        self._low: list[torch.Tensor] = []
        self._state: WeightState | None = None

    def fits(self) -> bool:
        """True if the parameters are still where they were found; pruning, for one, takes them away."""
        return all(owner.get(name) is not None for owner, name in self.slots)

    def current(self) -> list[torch.Tensor]:
        weights: list[Any] = [owner[name] for owner, name in self.slots]
        trained = any(w.requires_grad for w in weights)
        if trained and torch.is_grad_enabled():
            self._state = None  # the step that follows may be that of a fused optimizer
            return list(_Cast.apply(self.dtype, *weights))
        if trained or self._state is None or self._state.changed():  # a fused optimizer changes weights without notice
            with torch.inference_mode(False), torch.no_grad():
                if [(w.shape, w.device) for w in weights] != [(w.shape, w.device) for w in self._low]:
                    self._low = [torch.empty_like(w, dtype=self.dtype) for w in weights]
                torch._foreach_copy_(self._low, weights)
            self._state = None if trained else WeightState(self.slots)
        return self._low


def _is_cast(part: nn.Module) -> bool:
    """True if autocast casts all parameters of a module. Subclasses of other packages may use them in another way."""
    kinds = nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.MultiheadAttention
    return isinstance(part, kinds) and type(part).__module__.startswith(("torch.", "dearli_d2."))


class _Cast(torch.autograd.Function):
    """Casts tensors with one multi-tensor copy, and their gradients back with another."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        low = [torch.empty_like(w, dtype=dtype) for w in weights]
        torch._foreach_copy_(low, list(weights))
        ctx.mark_non_differentiable(*(x for x, needed in zip(low, ctx.needs_input_grad[1:], strict=True) if not needed))
        ctx.set_materialize_grads(False)
        ctx.types = [w.dtype for w in weights]
        return tuple(low)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        given = [(i, g) for i, g in enumerate(gradients) if g is not None]
        wide = {i: torch.empty_like(g, dtype=ctx.types[i]) for i, g in given}
        if given:
            torch._foreach_copy_(list(wide.values()), [g for _, g in given])
        return None, *(wide.get(i) for i in range(len(gradients)))


class WeightState:
    """Notices that weights have changed since it was made.

    It sees assignments, writes in place and moves to another device or type. It does not see writes through `.data` or by a fused
    optimizer.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        weights: list[Any] = [owner[name] for owner, name in slots]
        # an alias keeps the memory, so that no other weight can get its address
        self._aliases = [w.detach() for w in weights if type(w) is nn.Parameter]
        # weights that were made in inference mode have no version, and count as changed
        self._seen: list[tuple[Any, ...]] = [
            (*slot, w, None if w.is_inference() else w._version, _place(w))
            for slot, w in zip(slots, weights, strict=True)
        ]

    def changed(self) -> bool:
        """True if a weight has changed."""
        return any(
            owner[name] is not weight or version is None or weight._version != version or _place(weight) != place
            for owner, name, weight, version, place in self._seen
        )


def _place(weight: torch.Tensor) -> Any:
    # a tensor without memory of its own, such as a fake one, has no address
    return weight.data_ptr() if type(weight) is nn.Parameter else (weight.device, weight.dtype)


def parameter_slots(module: nn.Module, wanted: Callable[[nn.Module], bool] = lambda part: True) -> list[Slot]:
    """The slots of the parameters of all modules, or of the modules that are `wanted`."""
    return [
        (part._parameters, name)
        for part in module.modules()
        if wanted(part)
        for name, parameter in part._parameters.items()
        if parameter is not None
    ]


class _Copy:
    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self.dtype, self.state = dtype, WeightState(parameter_slots(network))
        known: dict[int, torch.Tensor] = {
            # timm joins this one, of zeros, with weights
            id(buffer): _cast(buffer, dtype) if name.endswith("k_bias") else buffer
            for name, buffer in network.named_buffers()
        }
        with torch.inference_mode(False), torch.no_grad():
            for parameter in network.parameters():
                known[id(parameter)] = nn.Parameter(_cast(parameter.detach(), dtype), requires_grad=False)
            self.network = copy.deepcopy(network, known)


_COPIES: WeakKeyDictionary[nn.Module, _Copy] = WeakKeyDictionary()
_WEIGHTS: WeakKeyDictionary[nn.Module, _CastWeights] = WeakKeyDictionary()


def _cast(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not weight.is_floating_point():
        return weight
    layout = torch.channels_last if weight.dim() == 4 else torch.preserve_format
    return weight.to(dtype, memory_format=layout)
