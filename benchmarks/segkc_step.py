"""Time and peak memory of one training step of SegKC, relative to the naive schedule, and the cost of junior and senior for an
image.

    python -m benchmarks.segkc_step --size 224 --images 2 --rounds 3

DINOv2-B and -S with random weights, as many unlabelled as labelled crops. Naive: labelled, strong and weak images go through each
network on their own, weak ones with a graph that nobody needs, and once more as CutMix partners (as published implementations of
CutMix do), the senior asks the junior for its features again each time, and the last step's gradients are cleared after the
forward passes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn

from dearli_d2.config import get_config
from dearli_d2.engine.cutmix import CutMix, CutMixPlan, mix_images
from dearli_d2.engine.optimizer import autocast, build_optimizer
from dearli_d2.engine.strong_views import StrongViews
from dearli_d2.modeling import build_model
from dearli_d2.structures import Targets

from .measure import compare_steps, interleaved_seconds

CONFIG = Path(__file__).parents[1] / "configs" / "pascal_voc" / "segkc_b_s.yaml"
CLASSES, CONFIDENCE = 21, 0.06  # random weights are never sure


def _model(amp: bool) -> tuple[nn.Module, object]:
    weights = "MODEL.BACKBONE.WEIGHTS", "", "MODEL.SENIOR.BACKBONE.WEIGHTS", ""
    cfg = get_config(CONFIG, [*weights, "SOLVER.AMP.ENABLED", str(amp), "SSL.CONFIDENCE", str(CONFIDENCE)])
    torch.manual_seed(0)
    return build_model(cfg).train(), cfg


def _samples(size: int, count: int, seed: int) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
        labels = torch.randperm(CLASSES, generator=generator)[:6]
        rows = torch.arange(size) * 6 // size
        masks = (rows == torch.arange(6)[:, None])[..., None].expand(-1, -1, size).clone()
        inside = torch.ones(size, size, dtype=torch.bool)
        sample = {"image": image, "strong": (255 - image)[None], "inside": inside, "targets": Targets(labels, masks)}
        samples.append({**sample, "file_name": ""})
    return samples


def build_ours(size: int, count: int, amp: bool) -> Callable[[], float]:
    """The step as the trainer runs it."""
    model, cfg = _model(amp)
    optimizer, rng = build_optimizer(cfg, model), np.random.default_rng(0)
    views = StrongViews(CutMix(1.0), (), model.device)
    labeled, unlabeled = _samples(size, count, 0), _samples(size, count, 1)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with autocast(cfg):
            losses = model({"labeled": labeled, "unlabeled": views(unlabeled, model.cross_labels(unlabeled), rng)})
        total = sum(losses.values())
        total.backward()
        optimizer.step()
        return total.item()

    return step


def build_naive(size: int, count: int, amp: bool) -> Callable[[], float]:
    """The naive schedule."""
    model, cfg = _model(amp)
    optimizer, rng = build_optimizer(cfg, model), np.random.default_rng(0)
    labeled, unlabeled = _samples(size, count, 0), _samples(size, count, 1)

    def junior(images: torch.Tensor) -> torch.Tensor:
        return full(model.head.classify(model.features(images)))

    def senior(images: torch.Tensor) -> torch.Tensor:
        return full(model.senior(images, model.features(images).detach()))

    def full(logits: torch.Tensor) -> torch.Tensor:
        return F.interpolate(logits, size=(size, size), mode="bilinear").float()

    def labels(logits: torch.Tensor) -> torch.Tensor:
        confidence, label = logits.detach().softmax(1).max(1)
        return label.masked_fill(confidence < CONFIDENCE, 255)

    def pasted(own: torch.Tensor, other: torch.Tensor, plan: CutMixPlan) -> torch.Tensor:
        inside = [plan.inside(i, size, size, own.device) for i in range(count)]
        return torch.where(torch.stack(inside), other, own)

    def distilled(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        target, own = (teacher.detach() / 2).softmax(1), (student / 2).log_softmax(1)
        return 4 * F.kl_div(own, target, reduction="none").sum(1).mean() / 2

    def images_of(key: str, samples: list[dict]) -> torch.Tensor:
        pixels = torch.stack([x[key].view(3, size, size) for x in samples]).to(model.device)
        return (pixels - model.pixel_mean) / model.pixel_std

    def step() -> float:
        plan = CutMix(1.0).plan(count, size, size, rng)
        target = torch.stack([x["targets"].semantic() for x in labeled]).to(model.device)
        with autocast(cfg):
            weak = images_of("image", unlabeled)
            own = junior(weak), senior(weak)
            with torch.no_grad():
                partners = weak[list(plan.partner)]
                other = junior(partners), senior(partners)
            crossed = [pasted(labels(a), labels(b), plan) for a, b in zip(own, other, strict=True)]
            known = images_of("image", labeled)
            pair = junior(known), senior(known)
            total = sum(F.cross_entropy(x, target, ignore_index=255) for x in pair) / 2 + distilled(pair[1], pair[0])
            strong = mix_images(images_of("strong", unlabeled), plan)
            pair = junior(strong), senior(strong)
            for logits, target in zip(pair, reversed(crossed), strict=True):
                loss = F.cross_entropy(logits, target, ignore_index=255, reduction="none")
                total = total + loss.mean() / 2
            total = total + distilled(pair[1], pair[0])
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        return total.item()

    return step


BUILDERS = {"ours": build_ours, "naive": build_naive}


def inference_tasks(size: int) -> dict[str, Callable[[], object]]:
    """One image through the junior and through the senior, which reads the junior."""
    tasks = {}
    for read in ("junior", "senior"):
        model, _ = _model(amp=False)
        model.read = read
        model.eval()
        inputs = [{"image": torch.zeros(3, size, size, dtype=torch.uint8)}]
        tasks[read] = torch.no_grad()(lambda model=model, inputs=inputs: model(inputs))
    return tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=2, help="labelled images, and as many unlabelled ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--amp", action="store_true", help="bf16 autocast")
    args = parser.parse_args()
    options = args.size, args.images, args.amp
    print(compare_steps(BUILDERS, options, args.rounds))
    model, _ = _model(amp=False)
    counts = {"junior": 0, "senior": 0}
    for name, parameter in model.named_parameters():
        counts["senior" if name.startswith("senior.") else "junior"] += parameter.numel()
    seconds = interleaved_seconds(inference_tasks(args.size), args.rounds)
    rows = [[name, counts[name] / 1e6, seconds[name], seconds[name] / seconds["senior"]] for name in counts]
    headers = ["network", "parameters (M)", "seconds an image", "ratio"]
    print("\n" + tabulate(rows, headers, floatfmt=("", ".1f", ".2f", ".2f"), tablefmt="github"))


if __name__ == "__main__":
    main()
