"""Matching of all layers and images together against one call per layer and image, on the same predictions.

python -m benchmarks.matching --layers 10 --batch 8
"""

from __future__ import annotations

import argparse

import torch
from tabulate import tabulate

from dearli_d2.modeling.mask2former.matcher import HungarianMatcher
from dearli_d2.modeling.mask2former.transformer_decoder import DecoderOutput
from dearli_d2.structures import Targets

from .measure import interleaved_seconds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    logits = torch.randn(args.layers, args.batch, args.queries, 151, device=DEVICE)
    embeddings = torch.randn(args.layers, args.batch, args.queries, 256, device=DEVICE)
    output = DecoderOutput(logits, embeddings, torch.randn(args.batch, 256, 80, 80, device=DEVICE))
    targets = [
        Targets(torch.randint(0, 150, (15,)), torch.rand(15, 320, 320) > 0.7).to(DEVICE) for _ in range(args.batch)
    ]
    matcher, transfers = HungarianMatcher(), {"joint": 0, "separate": 0}
    original, running = torch.Tensor.cpu, ["joint"]

    def counted(self: torch.Tensor, *a: object, **k: object) -> torch.Tensor:
        transfers[running[0]] += 1
        return original(self, *a, **k)

    def joint() -> None:
        running[0] = "joint"
        matcher(logits, output, targets)

    def separate() -> None:
        running[0] = "separate"
        for layer in range(args.layers):
            for image in range(args.batch):
                part = slice(image, image + 1)
                one = DecoderOutput(
                    logits[layer, part][None], embeddings[layer, part][None], output.mask_features[part]
                )
                matcher(logits[layer, part][None], one, targets[part])

    torch.Tensor.cpu = counted
    try:
        joint(), separate()
        counts = dict(transfers)
    finally:
        torch.Tensor.cpu = original
    seconds = interleaved_seconds({"joint": joint, "separate": separate}, args.rounds)
    rows = [[name, counts[name], seconds[name], seconds[name] / seconds["separate"]] for name in seconds]
    print(tabulate(rows, ["matching", "host transfers", "seconds", "ratio"], floatfmt=".3f"))


if __name__ == "__main__":
    main()
