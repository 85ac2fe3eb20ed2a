"""Batched panoptic read-out against a loop over segments written from the definition, on the same predictions.

python -m benchmarks.read_out --queries 200 --size 640 --batch 2
"""

from __future__ import annotations

import argparse

import torch
from tabulate import tabulate

from dearli_d2.modeling.mask2former.inference import panoptic_inference

from .measure import interleaved_seconds
from .reference import loop_panoptic

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def predictions(batch: int, queries: int, size: int, objects: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blobs that overlap; `objects` of the queries have a class, the others are no-object."""
    torch.manual_seed(0)
    classes = torch.full((batch, queries, 151), 0.0)
    classes.scatter_(-1, torch.randint(0, 150, (batch, queries, 1)), 6.0)
    classes[:, objects:, -1] = 12.0
    coarse = 6 * torch.randn(batch, queries, 12, 12) - 4
    masks = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    return classes.to(DEVICE), masks.to(DEVICE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    things, rows = set(range(100)), []
    for objects in (20, 60, args.queries):
        classes, masks = predictions(args.batch, args.queries, args.size, objects)

        def batched(classes=classes, masks=masks) -> object:
            return panoptic_inference(classes, masks, things, 0.0, 0.8)

        def loop(classes=classes, masks=masks) -> object:
            return [loop_panoptic(c, m, things, 0.0, 0.8) for c, m in zip(classes, masks, strict=True)]

        for (a, _), (b, _) in zip(batched(), loop(), strict=True):
            assert torch.equal(a.cpu(), b.cpu()), "the two read-outs differ"
        seconds = interleaved_seconds({"batched": batched, "loop": loop}, args.rounds)
        rows.append([objects, seconds["batched"], seconds["loop"], seconds["batched"] / seconds["loop"]])
    print(tabulate(rows, ["object queries", "batched s", "loop s", "ratio"], floatfmt=".3f"))


if __name__ == "__main__":
    main()
