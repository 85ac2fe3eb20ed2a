"""AdamW parameter groups, learning-rate schedule and autocast from the config."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from torch import nn

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


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict]:
    """Groups by learning rate and weight decay; each has "names" for reports.

    Weight decay is WEIGHT_DECAY_NORM for normalisation layers and WEIGHT_DECAY_EMBED for embeddings, the latter
    including whatever is no weight or bias of a layer: position and level embeddings, prompt tokens, temperatures, gates,
    layer scales, a bias of all classes. The learning rate of a backbone is BASE_LR x BACKBONE_MULTIPLIER; its feature
    pyramid, which is new, has the full one.
    """
    solver = cfg.SOLVER
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter, module in _trainable(model):
        in_tower = _TOWER.match(name) is not None
        rate = solver.BASE_LR * (solver.BACKBONE_MULTIPLIER if in_tower else 1.0)
        decay = solver.WEIGHT_DECAY
        if isinstance(module, _NORMS):
            decay = solver.WEIGHT_DECAY_NORM
        elif isinstance(module, nn.Embedding) or name.rpartition(".")[2] not in _DECAYED:
            decay = solver.WEIGHT_DECAY_EMBED
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "names": []})
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


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`."""
    groups = [{k: v for k, v in group.items() if k != "names"} for group in parameter_groups(cfg, model)]
    # one kernel for many tensors; where parameters lie on a CPU it is slower than the default
    return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, fused=cfg.MODEL.DEVICE.startswith("cuda"))


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """After a linear warm-up (1 - t / T)^power, or a factor of SOLVER.DECAY in every tenth of the run."""
    solver = cfg.SOLVER
    warmup, total = solver.WARMUP_ITERS, solver.MAX_ITER

    def factor(step: int) -> float:
        start = min((step + 1) / (warmup + 1), 1.0)
        if solver.SCHEDULE == "exponential":
            return start * solver.DECAY ** (10 * step / total)
        return start * max(1 - step / total, 0.0) ** solver.POLY_POWER

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


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
