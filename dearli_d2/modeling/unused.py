"""Parameters that do not take part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

_SIDE = 2  # of the probe, in what the network's input is a multiple of


def freeze_unused(network: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], divisor: int) -> None:
    """Freezes what does not lead to the result of `forward`, such as CLIP's own head: data-parallel training wants a
    gradient for every parameter that is trained.

    Args:
        network: whose parameters are tried. forward: (1, 3, S, S) images to a tensor. divisor: of S.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    if not trained:
        return
    training = network.training
    network.eval()  # running statistics must not learn from the probe
    with torch.enable_grad():
        probe = forward(torch.zeros(1, 3, _SIDE * divisor, _SIDE * divisor)).sum()
    network.train(training)
    gradients = torch.autograd.grad(probe, trained, allow_unused=True) if probe.requires_grad else [None] * len(trained)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
