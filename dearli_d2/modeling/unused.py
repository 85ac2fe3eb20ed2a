"""Parameters that do not take part."""

from __future__ import annotations

import torch

from ..errors import ConfigError
from .segmenter import Segmenter, input_divisor

_SIDE = 2  # of the probe, in what the network's input is a multiple of


def freeze_unused(model: Segmenter) -> None:
    """Freezes the parameters of the backbones that no loss depends on, such as those of CLIP's own head.

    Data-parallel training needs a gradient for every parameter that is trained.

    Raises:
        ConfigError: a backbone that does not take images of other sizes than its own.
    """
    for backbone, used in model.backbone_paths():
        trained = [p for p in backbone.parameters() if p.requires_grad]
        if not trained:
            continue
        training = backbone.training
        backbone.eval()  # running statistics must not learn from the probe
        side = _SIDE * input_divisor(backbone)
        try:
            with torch.enable_grad():
                maps = used(torch.zeros(1, 3, side, side, device=trained[0].device))
                probe = torch.stack([x.sum() for x in maps]).sum()
        except (AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"MODEL.BACKBONE.ARCH: this network does not take images of {side} x {side} pixels: {error}"
            ) from error
        finally:
            backbone.train(training)
        gradients = (
            torch.autograd.grad(probe, trained, allow_unused=True) if probe.requires_grad else [None] * len(trained)
        )
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
