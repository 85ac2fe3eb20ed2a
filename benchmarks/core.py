"""Pixel decoder + transformer decoder + criterion, forward and backward, ours against Hugging Face's.

    python -m benchmarks.core --sizes 320 640 --rounds 3

Same weights, same inputs, B = 2, 100 queries, 12 544 points, 10 supervised outputs, ten segments an image.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from tabulate import tabulate

from dearli_d2.structures import Targets

from .hf_peer import build_pair
from .measure import interleaved_seconds, peak_megabytes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_EMBED_DIM = 96  # Swin-T and the like: 96, 192, 384, 768 channels


def _inputs(size: int) -> tuple[list[torch.Tensor], list[Targets]]:
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(2, _EMBED_DIM * 2**i, size // 2 ** (i + 2), size // 2 ** (i + 2), generator=generator).to(DEVICE)
        for i in range(4)
    ]
    targets = []
    for _ in range(2):
        masks = torch.zeros(10, size, size, dtype=torch.bool)
        for mask in masks:
            y, x = torch.randint(0, size // 2, (2,), generator=generator).tolist()
            mask[y : y + size // 3, x : x + size // 3] = True
        targets.append(Targets(torch.randint(0, 150, (10,), generator=generator), masks).to(DEVICE))
    return features, targets


def build_step(which: str, size: int) -> Callable[[], torch.Tensor]:
    """A step of "ours" or "peer"; returns its loss."""
    torch.manual_seed(0)
    head, criterion, peer = build_pair(150, 256, 100, 8, 6, 9, 2048, 1024, 12544, embed_dim=_EMBED_DIM)
    features, targets = _inputs(size)
    if which == "ours":
        head.to(DEVICE).train(), criterion.to(DEVICE)

        def ours() -> torch.Tensor:
            head.zero_grad(set_to_none=True)
            output = head({f"res{i + 2}": f for i, f in enumerate(features)})
            loss = sum(criterion(output.class_outputs, output, targets).values())
            loss.backward()
            return loss.detach()

        return ours
    peer.to(DEVICE).train()
    masks, labels = [t.masks.float() for t in targets], [t.labels for t in targets]

    def theirs() -> torch.Tensor:
        peer.zero_grad(set_to_none=True)
        pixels = peer.model.pixel_level_module.decoder(features, output_hidden_states=False)
        decoded = peer.model.transformer_module(
            multi_scale_features=pixels.multi_scale_features, mask_features=pixels.mask_features,
            output_hidden_states=True, output_attentions=False,
        )  # fmt: skip
        classes = [peer.class_predictor(state.transpose(0, 1)) for state in decoded.intermediate_hidden_states]
        auxiliary = peer.get_auxiliary_logits(classes, decoded.masks_queries_logits)
        parts = peer.get_loss_dict(decoded.masks_queries_logits[-1], classes[-1], masks, labels, auxiliary)
        loss = peer.get_loss(parts)
        loss.backward()
        return loss.detach()

    return theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 640])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for size in args.sizes:
        steps = {which: build_step(which, size) for which in ("ours", "peer")}
        losses = {which: float(step()) for which, step in steps.items()}
        seconds = interleaved_seconds(steps, args.rounds)
        del steps
        memory = {which: peak_megabytes(build_step, which, size) for which in ("ours", "peer")}
        rows.append(
            [f"{size} x {size}", seconds["ours"], seconds["peer"], seconds["ours"] / seconds["peer"],
             memory["ours"], memory["peer"], memory["ours"] / memory["peer"], losses["ours"], losses["peer"]]
        )  # fmt: skip
    titles = ["input", "ours s", "peer s", "time ratio", "ours MB", "peer MB", "memory ratio", "our loss", "peer loss"]
    print(tabulate(rows, titles, floatfmt=".2f"))


if __name__ == "__main__":
    main()
