"""Time and memory of forward and backward of one HVL training step with and without its parts, at K classes.

    python -m benchmarks.hvl_cost --size 256 --classes 21 81 150 --rounds 3

ViT-B/16 shapes, random weights, two labelled images; ratios to Mask2Former (random queries) in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate

from dearli_d2.config import get_config
from dearli_d2.data.taxonomy import Taxonomy
from dearli_d2.modeling import build_model
from dearli_d2.structures import Targets

from .measure import interleaved_seconds, peak_megabytes

CONFIG = Path(__file__).parents[1] / "configs" / "pascal_voc" / "hvl_vit_b.yaml"
NO_LOSSES = tuple(f"MODEL.HVL.{key}_WEIGHT=0.0" for key in ("DIVERSITY", "PROMPT", "VL"))
PARTS = {
    "random queries": ("MODEL.HVL.TEXTUAL_QUERIES=False", *NO_LOSSES),
    "HTQG": ("MODEL.HVL.REFINEMENT=False", *NO_LOSSES),
    "+ PTRM": NO_LOSSES,
    "+ L_div, L_prompt": ("MODEL.HVL.VL_WEIGHT=0.0",),
    "+ L_vl": (),
}


def build_step(part: str, classes: int, size: int) -> Callable[[], None]:
    """One forward and backward pass."""
    options = [x for option in PARTS[part] for x in option.split("=")]
    fixed = ["MODEL.BACKBONE.WEIGHTS", "", "MODEL.NUM_CLASSES", str(classes), "MODEL.HVL.PRESENCE", "all"]
    cfg = get_config(CONFIG, [*fixed, *options, "SOLVER.AMP.ENABLED", "False"])
    names = tuple((f"class number {i}",) for i in range(classes))
    taxonomy = Taxonomy(names, frozenset(), tuple(range(classes)), tuple((0, 0, 0) for _ in names))
    torch.manual_seed(0)
    model = build_model(cfg, taxonomy).train()
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(2):
        labels = torch.randperm(classes, generator=generator)[:6]
        rows = torch.arange(size) * 6 // size
        masks = (rows == torch.arange(6)[:, None])[..., None].expand(-1, -1, size).clone()
        image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
        samples.append({"image": image, "targets": Targets(labels, masks)})

    def step() -> None:
        model.zero_grad(set_to_none=True)
        sum(model({"labeled": samples}).values()).backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--classes", type=int, nargs="+", default=[21, 81, 150])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for classes in args.classes:
        steps = {part: build_step(part, classes, args.size) for part in PARTS}
        seconds = interleaved_seconds(steps, args.rounds)
        memory = {part: peak_megabytes(build_step, part, classes, args.size) for part in PARTS}
        first = next(iter(PARTS))
        rows += [
            [classes, part, f"{seconds[part]:.2f}", f"{seconds[part] / seconds[first]:.2f}",
             f"{memory[part]:.0f}", f"{memory[part] / memory[first]:.2f}"]
            for part in PARTS
        ]  # fmt: skip
    print(tabulate(rows, ["K", "", "seconds", "ratio", "MiB added", "ratio"], tablefmt="github"))


if __name__ == "__main__":
    main()
