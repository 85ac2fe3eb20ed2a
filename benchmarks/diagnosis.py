"""The command line that diagnoses of a trained model's pseudo-labels share."""

from __future__ import annotations

import argparse

from detectron2.config import CfgNode

from dearli_d2 import Predictor
from dearli_d2.config import get_config
from dearli_d2.data.catalog import annotated_dicts, dataset_dicts


def begin(description: str) -> tuple[CfgNode, Predictor, list[dict]]:
    """The config and the predictor of `--config-file` and `--weights`, and each n-th image of `--data` with its annotations."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument(
        "--data", required=True, help="data set or view; annotations of an unlabelled view are read here"
    )
    parser.add_argument("--every", type=int, default=8, help="each n-th image")
    parser.add_argument("options", nargs="*", help="KEY VALUE overrides")
    args = parser.parse_args()
    dicts = annotated_dicts(args.data) if args.data.endswith(":unlabeled") else dataset_dicts(args.data)
    cfg = get_config(args.config_file, args.options)
    return cfg, Predictor(cfg, args.weights), dicts[:: args.every]
