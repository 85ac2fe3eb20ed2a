"""AdamW parameter groups, learning-rate schedule, gradient clipping and autocast from the config."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..modeling.segmenter import LearningRate, Segmenter

_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.LocalResponseNorm,
    nn.modules.instancenorm._InstanceNorm,
)
_TOWER = re.compile(r"(senior\.)?backbone\.(?!pyramid\.)")
# last names of the parameters that weight decay is for; what is called otherwise is a token, an embedding, a temperature, a gate,
# a bias or a scale that stands alone
_DECAYED = ("weight", "bias", "in_proj_weight", "in_proj_bias", "proj", "text_projection")


def parameter_groups(cfg: CfgNode, model: Segmenter) -> list[dict[str, Any]]:
    """Groups by learning rate and weight decay; each has "names" for reports, and "delay" and "warmup" of `LearningRate`.

    Weight decay is WEIGHT_DECAY_NORM for normalisation layers and WEIGHT_DECAY_EMBED for embeddings, the latter
    including whatever is no weight or bias of a layer: position and level embeddings, prompt tokens, temperatures, gates,
    layer scales, a bias of all classes. The learning rate of a backbone is BASE_LR x BACKBONE_MULTIPLIER; its feature
    pyramid, which is new, has the full one. The method may change it further, see `Segmenter.learning_rate`.
    """
    solver = cfg.SOLVER
    groups: dict[tuple[float, float, LearningRate], dict[str, Any]] = {}
    for name, parameter, module in _trainable(model):
        in_tower = _TOWER.match(name) is not None
        own = model.learning_rate(name)
        rate = solver.BASE_LR * (solver.BACKBONE_MULTIPLIER if in_tower else 1.0) * own.factor
        decay = solver.WEIGHT_DECAY
        if isinstance(module, _NORMS):
            decay = solver.WEIGHT_DECAY_NORM
        elif isinstance(module, nn.Embedding) or name.rpartition(".")[2] not in _DECAYED:
            decay = solver.WEIGHT_DECAY_EMBED
        options = {"lr": rate, "weight_decay": decay, "delay": own.delay, "warmup": own.warmup}
        group = groups.setdefault((rate, decay, own), {"params": [], "names": [], **options})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    seen = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield f"{prefix}.{name}" if prefix else name, parameter, module


def build_optimizer(cfg: CfgNode, model: Segmenter) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`."""
    groups = [{k: v for k, v in group.items() if k != "names"} for group in parameter_groups(cfg, model)]
    # one kernel for many tensors; where parameters lie on a CPU it is slower than the default
    return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, fused=cfg.MODEL.DEVICE.startswith("cuda"))


class Schedule(torch.optim.lr_scheduler.LambdaLR):
    """A `LambdaLR` that follows the length of this run also where its state is that of a shorter or longer one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state, and sets the learning rates of the optimiser that follow from it."""
        super().load_state_dict(state_dict)
        rates = zip(self.base_lrs, self.lr_lambdas, strict=True)
        for group, (base, factor) in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = base * factor(self.last_epoch)


class GradientClipping:
    """Scales the gradients of all parameters together to an upper limit of their norm.

    Args:
        optimizer: of the parameters.
        limit: of the L2 norm; infinite = only the norm is computed.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, limit: float) -> None:
        self.optimizer, self.limit = optimizer, limit

    def __call__(self) -> torch.Tensor:
        """Clips the gradients; returns their norm before that, a scalar on their device."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(parameters, self.limit)


def build_clipping(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> GradientClipping:
    """Gradient clipping to the full-model norm of a config."""
    options = cfg.SOLVER.CLIP_GRADIENTS
    return GradientClipping(optimizer, options.CLIP_VALUE if options.ENABLED else math.inf)


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Schedule:
    """A linear warm-up, then (1 - t / T)^power, or a factor of SOLVER.DECAY in every tenth of the run.

    Groups with a delay start their warm-up after it.
    """
    factors = [_schedule(cfg, group.get("delay", 0), group.get("warmup")) for group in optimizer.param_groups]
    return Schedule(optimizer, factors)


def _schedule(cfg: CfgNode, delay: int, warmup: int | None) -> Callable[[int], float]:
    """The factor of the learning rate in each step; see `LearningRate`."""
    solver = cfg.SOLVER
    total, ramp = solver.MAX_ITER, solver.WARMUP_ITERS if warmup is None else warmup

    def factor(step: int) -> float:
        if step < delay:
            return 0.0
        start = min((step - delay + 1) / (ramp + 1), 1.0)
        if solver.SCHEDULE == "exponential":
            return float(start * solver.DECAY ** (10 * step / total))
        return float(start * max(1 - step / total, 0.0) ** solver.POLY_POWER)

    return factor


def autocast(cfg: CfgNode, enabled: bool | None = None) -> torch.autocast:
    """The mixed-precision context of a run, with the type of SOLVER.AMP.DTYPE.

    Args:
        enabled: None = as in training, SOLVER.AMP.ENABLED; otherwise it does nothing where False.
    """
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[cfg.SOLVER.AMP.DTYPE]
    enabled = cfg.SOLVER.AMP.ENABLED if enabled is None else enabled
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, dtype=dtype, enabled=enabled)


def build_scaler(cfg: CfgNode) -> torch.amp.GradScaler:
    """Loss scaling for fp16; disabled (a pass-through) otherwise."""
    enabled = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16"
    return torch.amp.GradScaler(torch.device(cfg.MODEL.DEVICE).type, enabled=enabled)
