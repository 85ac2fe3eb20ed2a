"""How much HVL's regularisers pull, beside the segmentation losses, at the parameters that they are for.

    python -m benchmarks.hvl_gradients --config-file configs/miniworld/hvl.yaml --batches 16 --share 0.1

Norm of the gradient of each regulariser, with its weight, over that of the segmentation losses of the same labelled batches
(root mean squares over the batches); and the weight that would make it `--share`. Without weights: at the start of training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import islice

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn

from dearli_d2.checkpoint import load_weights
from dearli_d2.config import get_config
from dearli_d2.data.build import build_streams
from dearli_d2.modeling import build_model
from dearli_d2.reporting import report_errors

# loss, parameters that it is for, keys whose product is its weight
REGULARISERS = (
    ("loss_diversity", "generator", ("DIVERSITY_WEIGHT",)),
    ("loss_prompt", "prompts", ("PROMPT_WEIGHT",)),
    ("loss_prompt", "prompt_generator", ("PROMPT_WEIGHT",)),
    ("loss_align", "backbone", ("VL_WEIGHT", "ALIGN_WEIGHT")),
    ("loss_consistency", "backbone", ("VL_WEIGHT", "MASK_WEIGHT")),
)


def gradient_norm(loss: torch.Tensor, parameters: Sequence[nn.Parameter]) -> float:
    """Norm of the gradient of a loss, whose graph is kept."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5


def shares(model: nn.Module, batches: Sequence[dict[str, list[dict]]]) -> dict[tuple[str, str], float]:
    """Of each (loss, part) of `REGULARISERS`: the share as above."""
    parts = {part: [p for p in getattr(model, part).parameters() if p.requires_grad] for _, part, _ in REGULARISERS}
    squares = dict.fromkeys([(loss, part) for loss, part, _ in REGULARISERS], 0.0)
    segmentation = dict.fromkeys(parts, 0.0)
    model.train()
    for batch in batches:
        losses = model(batch)
        names = {loss for loss, _, _ in REGULARISERS}
        rest = sum(value for name, value in losses.items() if name not in names)
        for part, parameters in parts.items():
            segmentation[part] += gradient_norm(rest, parameters) ** 2
        for loss, part in squares:
            squares[loss, part] += gradient_norm(losses[loss], parts[part]) ** 2
    return {key: (value / segmentation[key[1]]) ** 0.5 for key, value in squares.items()}


def weight_of(cfg: CfgNode, keys: Sequence[str]) -> float:
    """The product of some keys of MODEL.HVL."""
    weight = 1.0
    for key in keys:
        weight *= cfg.MODEL.HVL[key]
    return weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", nargs="+", default=[""], help="checkpoints of one run, in their order")
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.1, help="of the gradient of the segmentation losses")
    parser.add_argument("options", nargs="*", default=[], help="KEY VALUE overrides; before --weights")
    args = parser.parse_args()
    cfg = get_config(args.config_file, [*args.options, "DATASETS.UNLABELED", "()", "SOLVER.AMP.ENABLED", "False"])
    batches = list(islice(build_streams(cfg), args.batches))
    columns = []
    for weights in args.weights:
        torch.manual_seed(cfg.SEED)
        model = build_model(cfg)
        if weights:
            load_weights(model, weights)
        columns.append(shares(model, batches))
    rows = []
    for loss, part, keys in REGULARISERS:
        values, weight = [column[loss, part] for column in columns], weight_of(cfg, keys)
        wanted = weight * args.share / (sum(values) / len(values))
        rows.append([loss, part, *(f"{100 * v:.2g} %" for v in values), f"{weight:g}", f"{wanted:.2g}"])
    numbers = [f"at {i}" for i in range(len(args.weights))]
    print(tabulate(rows, ["", "at", *numbers, "weight", f"for {100 * args.share:g} %"], tablefmt="github"))


if __name__ == "__main__":
    sys.exit(report_errors(main))
