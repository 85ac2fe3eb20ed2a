"""Frozen networks in the type of autocast, whose weights are cast once instead of in every pass.

Autocast keeps what it casts only for weights that need a gradient, and only within one context. It also runs norms, and with them
the sums of residual networks, in fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)
Slot = tuple[dict[str, nn.Parameter | None], str]  # the parameters of a module, and one's name among them


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The type that autocast has on a device now; None = it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def low_precision(
    network: Network, dtype: torch.dtype, simplify: Callable[[Network, Network], None] | None = None
) -> Network:
    """A copy of a frozen network whose weights have another type, for use without autocast.

    It is made once, and again after the weights have changed. It belongs to no module, so it is in no state dict, and those who
    share the network share it. Buffers are those of the network and keep their type: tables of angles need its digits.

    Args:
        network: in eval mode.
        dtype: of the weights. Those of convolutions are stored with their channels last.
        simplify: called with the network and the new copy, which it may change.
    """
    made = _COPIES.get(network)
    if made is None or made.dtype != dtype or made.state.changed():
        made = _COPIES[network] = _Copy(network, dtype)
        if simplify is not None:
            with torch.inference_mode(False), torch.no_grad():
                simplify(network, made.network)
    return made.network  # type: ignore[return-value]


class WeightState:
    """Notices that weights have other values than at the time of its making.

    It sees assignment, writing in place and a move to another device or type. Writing through `.data` is not seen.
    """

    def __init__(self, slots: Iterable[Slot]) -> None:
        self.slots = list(slots)
        self._seen = [_look(owner[name]) for owner, name in self.slots]

    def changed(self) -> bool:
        """True if a weight is another now."""
        for (owner, name), (tensor, alias, version) in zip(self.slots, self._seen, strict=True):
            now = owner[name]
            if now is not tensor or alias is None or now is None:
                return True
            if _version(now) != version or now.dtype != alias.dtype or now.device != alias.device:
                return True
            if type(now) is nn.Parameter and now.data_ptr() != alias.data_ptr():  # no pretended tensor
                return True
        return False


def parameter_slots(module: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Module,)) -> list[Slot]:
    """All parameters in the modules of some kinds, at their places."""
    return [
        (part._parameters, name)
        for part in module.modules()
        if isinstance(part, kinds)
        for name, parameter in part._parameters.items()
        if parameter is not None
    ]


class _Copy:
    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self.dtype, self.state = dtype, WeightState(parameter_slots(network))
        known: dict[int, torch.Tensor] = {id(buffer): buffer for buffer in network.buffers()}
        with torch.inference_mode(False), torch.no_grad():
            for parameter in network.parameters():
                known[id(parameter)] = nn.Parameter(_cast(parameter.detach(), dtype), requires_grad=False)
            self.network = copy.deepcopy(network, known)


_COPIES: WeakKeyDictionary[nn.Module, _Copy] = WeakKeyDictionary()


def _cast(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not weight.is_floating_point():
        return weight
    layout = torch.channels_last if weight.dim() == 4 else torch.preserve_format
    return weight.to(dtype, memory_format=layout)


def _look(tensor: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
    # the alias keeps the memory, so that no other weight can come to lie there
    return tensor, None if tensor is None else tensor.detach(), -1 if tensor is None else _version(tensor)


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
