"""What SemiDAViL's models lose on miniworld's night scenes with the caption of another scene: the trained models of
`benchmarks.semidavil` (row dlg_5_dyce), evaluated with their own captions and with those dealt out at random.

    python -m benchmarks.semidavil_captions --seeds 3 --models output/semidavil/dlg_5_dyce
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from tabulate import tabulate

from dearli_d2.checkpoint import load_weights
from dearli_d2.config import get_config
from dearli_d2.data.captions import read_captions
from dearli_d2.data.catalog import register, source_of
from dearli_d2.engine.evaluation import evaluate
from dearli_d2.files import write_atomically
from dearli_d2.modeling import build_model
from dearli_d2.reporting import report_errors

from .study import CONFIGS

OWN, OTHER = "miniworld_night_val", "miniworld_night_val_other_captions"


def register_permuted(folder: Path) -> None:
    """`OTHER`: the scenes of `OWN`, with their captions dealt out at random."""
    captions = read_captions(source_of(OWN).captions)
    order = np.random.default_rng(0).permutation(len(captions))
    texts = list(captions.values())
    lines = [json.dumps({"file": file, "caption": texts[i]}) for file, i in zip(captions, order, strict=True)]
    path = folder / "permuted_captions.jsonl"
    write_atomically(path, lambda temporary: temporary.write_text("\n".join(lines) + "\n"))
    register(OTHER, replace(source_of(OWN), captions=path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", type=Path, default=Path("output/semidavil/dlg_5_dyce"))
    parser.add_argument("--out", type=Path, default=Path("output/semidavil_captions"))
    args = parser.parse_args()
    register_permuted(args.out)
    rows = []
    for seed in range(args.seeds):
        options = ["DATASETS.TEST", f"('{OWN}', '{OTHER}')", "OUTPUT_DIR", str(args.out / f"seed_{seed}")]
        cfg = get_config(CONFIGS / "miniworld" / "semidavil.yaml", [*options, "TEST.PICTURES", "0"])
        model = build_model(cfg, load_backbone=False)
        load_weights(model, args.models / f"seed_{seed}" / "model_final.pth")
        scores = evaluate(cfg, model)
        rows.append([seed, *(f"{scores[f'{name}/semantic/mIoU']:.1f}" for name in (OWN, OTHER))])
    print(tabulate(rows, ["seed", "own captions", "of other scenes"], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    sys.exit(report_errors(main))
