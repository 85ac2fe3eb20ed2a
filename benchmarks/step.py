"""One DEARLi step, ours against the naive schedule, on ConvNeXt-B shapes with random weights.

    python -m benchmarks.step --size 320 --images 2 --rounds 3

The naive schedule is that of simple implementations of Mean Teacher with CutMix: the teacher labels the images and,
apart, their CutMix partners; the student runs apart on labelled and unlabelled images; the teacher is a whole copy that a
loop over all parameters updates; segments are read out and mixed in Python loops. Both use the same network and losses.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import nn

from dearli_d2.config import get_config
from dearli_d2.data.class_names import class_table
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.engine.cutmix import CutMix, mix_images
from dearli_d2.engine.optimizer import autocast, build_optimizer
from dearli_d2.engine.step import stacked
from dearli_d2.engine.strong_views import StrongViews
from dearli_d2.engine.teacher import EMATeacher
from dearli_d2.modeling import build_model
from dearli_d2.modeling.mask2former.inference import resize_logits
from dearli_d2.structures import Targets

from .measure import compare_steps, synchronize
from .reference import loop_panoptic

CONFIG = Path(__file__).parents[1] / "configs" / "ade20k" / "dear_convnext_b.yaml"
CLASSES, THINGS, SEGMENTS = 150, 100, 10


def _samples(size: int, count: int, seed: int) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        masks = torch.zeros(SEGMENTS, size, size, dtype=torch.bool)
        for mask in masks:
            y, x = torch.randint(0, size // 2, (2,), generator=generator).tolist()
            mask[y : y + size // 3, x : x + size // 3] = True
        image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, CLASSES, (SEGMENTS,), generator=generator)
        samples.append(
            {
                "image": image,
                "strong": (255 - image)[None],
                "inside": torch.ones(size, size, dtype=torch.bool),
                "targets": Targets(labels, masks),
                "file_name": "",
            }
        )
    return samples


def _model(amp: bool) -> tuple[nn.Module, object]:
    overrides = ["MODEL.BACKBONE.WEIGHTS", "", "MODEL.TEXT.TEMPLATES", "name", "SOLVER.AMP.ENABLED", str(amp)]
    cfg = get_config(CONFIG, overrides)
    names = tuple(entry.names for entry in class_table("ade20k"))  # with as many synonyms as in training
    colors = tuple((0, 0, 0) for _ in names)
    taxonomy = Taxonomy(names, frozenset(range(THINGS)), tuple(range(CLASSES)), colors)
    torch.manual_seed(0)
    return build_model(cfg, taxonomy).train(), cfg


def build_ours(size: int, count: int, amp: bool) -> Callable[[], dict]:
    """The step as the trainer runs it."""
    model, cfg = _model(amp)
    teacher, optimizer = EMATeacher(model), build_optimizer(cfg, model)
    views = StrongViews(CutMix(1.0), model.taxonomy.thing_ids, model.device)
    labeled, unlabeled = _samples(size, count, 0), _samples(size, count, 1)
    rng = np.random.default_rng(0)

    def step() -> dict:
        optimizer.zero_grad(set_to_none=True)
        with autocast(cfg):
            pseudo = views(unlabeled, teacher.label(unlabeled), rng)
            losses = model({"labeled": labeled, "unlabeled": pseudo})
        _descend(model, optimizer, losses)
        teacher.update(model)
        return read(losses)

    step.parts = model, teacher
    return step


def build_naive(size: int, count: int, amp: bool) -> Callable[[], dict]:
    """The naive schedule."""
    model, cfg = _model(amp)
    teacher, optimizer = copy.deepcopy(model).eval(), build_optimizer(cfg, model)
    labeled, unlabeled = _samples(size, count, 0), _samples(size, count, 1)
    rng, things = np.random.default_rng(0), model.taxonomy.thing_ids

    @torch.no_grad()
    def label(samples: list[dict]) -> list[tuple[torch.Tensor, list[dict]]]:
        logits, masks = teacher.predict(teacher.preprocess(samples).tensor, 0.6)
        full = resize_logits(masks, (size, size))
        return [loop_panoptic(c, m, things, 0.0, 0.8) for c, m in zip(logits.float(), full.float(), strict=True)]

    def step() -> dict:
        plan = CutMix(1.0).plan(count, size, size, rng)
        with autocast(cfg):
            own, partner = label(unlabeled), label([unlabeled[i] for i in plan.partner])
            images = mix_images(torch.stack([x["strong"][0] for x in unlabeled]).to(model.device), plan)
            pseudo = []
            for i in range(count):
                inside = plan.inside(i, size, size, model.device)
                targets = loop_cutmix(own[i], partner[i], inside, things)
                pseudo.append({"image": images[i], "targets": targets})
            losses = model(labeled)
            losses |= {f"unlabeled_{k}": v for k, v in model(pseudo).items()}
        optimizer.zero_grad(set_to_none=True)
        _descend(model, optimizer, losses)
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), model.parameters(), strict=True):
                mine.mul_(0.999).add_(theirs, alpha=0.001)
        return read(losses)

    return step


def loop_cutmix(own: tuple, partner: tuple, inside: torch.Tensor, things: frozenset[int]) -> Targets:
    """CutMix of two panoptic read-outs, one segment after another."""
    masks: list[torch.Tensor] = []
    labels: list[int] = []
    for (panoptic, segments), region in ((own, ~inside), (partner, inside)):
        for identifier in panoptic.unique().tolist():
            if not identifier:
                continue
            label = next(s["category_id"] for s in segments if s["id"] == identifier)
            mask = (panoptic == identifier) & region
            if not mask.any().item():
                continue
            if label not in things and label in labels:
                masks[labels.index(label)] |= mask
            else:
                masks.append(mask)
                labels.append(label)
    if not masks:
        return Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, *inside.shape, dtype=torch.bool)).to(
            inside.device
        )
    return Targets(torch.tensor(labels), torch.stack(masks).cpu()).to(inside.device)


def read(losses: dict[str, torch.Tensor]) -> dict[str, float]:
    """The losses on the host, in one transfer as in the trainer."""
    return dict(zip(losses, stacked(losses).tolist(), strict=True))


def _descend(model: nn.Module, optimizer: torch.optim.Optimizer, losses: dict[str, torch.Tensor]) -> None:
    stacked(losses).sum().backward()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 0.01)
    optimizer.step()


BUILDERS = {"ours": build_ours, "naive": build_naive}


# ---------------------------------------------------------------------------------------------- profile


def profile(options: tuple) -> list[tuple[str, float]]:
    """(part, seconds) of one step of ours, after a warm-up."""
    step = build_ours(*options)
    model, teacher = step.parts
    step()
    spans: dict[str, float] = {}

    @contextmanager
    def timed(name: str):
        synchronize()
        start = time.perf_counter()
        yield
        synchronize()
        spans[name] = spans.get(name, 0.0) + time.perf_counter() - start

    def wrap(owner: object, attribute: str, name: str) -> None:
        original = getattr(owner, attribute)

        def timed_call(*args: object, **kwargs: object) -> object:
            with timed(name):
                return original(*args, **kwargs)

        setattr(owner, attribute, timed_call)

    for who, part in (("student", model), ("teacher", teacher.model)):
        wrap(part.sem_seg_head.pixel_decoder, "forward", f"{who} pixel decoder")
        wrap(part.sem_seg_head.predictor, "forward", f"{who} transformer decoder")
    wrap(model.backbone, "forward", "backbone (both)")
    wrap(teacher.model, "zero_shot_logits", "teacher zero-shot posterior")
    wrap(teacher, "pseudo_label", "teacher in all")
    wrap(model.criterion.matcher, "costs", "matching costs")
    wrap(model.criterion, "forward", "criterion in all")
    wrap(teacher, "update", "EMA")
    original_backward = torch.Tensor.backward

    def backward(self: torch.Tensor, *args: object, **kwargs: object) -> None:
        with timed("backward"):
            original_backward(self, *args, **kwargs)

    torch.Tensor.backward = backward
    try:
        with timed("step"):
            step()
    finally:
        torch.Tensor.backward = original_backward
    return sorted(spans.items(), key=lambda item: -item[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--images", type=int, default=2, help="labelled images, and as many unlabelled ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--amp", action="store_true", help="bf16 autocast")
    parser.add_argument("--profile", action="store_true", help="seconds by component")
    args = parser.parse_args()
    options = args.size, args.images, args.amp
    if args.profile:
        print(tabulate(profile(options), ["part", "seconds"], floatfmt=".2f", tablefmt="github"))
        return
    print(compare_steps(BUILDERS, options, args.rounds))


if __name__ == "__main__":
    main()
