"""Makes class-agnostic masks of a data set or of a folder of images, for the decoder warm-up, and pictures of them.

`generate` segments with SAM, whose published weights are needed, or with a classical method, which needs none. The same
command continues after an interruption. Several processes share the images: torchrun on one machine, --shard on several.
`view` writes pictures of some of the masks.

Examples:

    python -m dearli_d2.masks generate --images my_data/images --out masks --generator classical
    python -m dearli_d2.masks generate --dataset miniworld_train --out masks_sam --weights sam_vit_h_4b8939.pth
    python -m dearli_d2.masks view --images my_data/images --masks masks --out mask_pictures
    torchrun --nproc-per-node 2 -m dearli_d2.masks generate --images my_data/images --out masks_2 --generator classical
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from ..arguments import command_parser, positive
from ..data.catalog import dataset_dicts
from ..data.images import find_images
from ..data.mappers import read_image
from ..errors import ConfigError, first_few
from ..files import file_digest, picture_names
from ..reporting import report_errors
from ..visualization import save_mask_picture
from .classical import ClassicalGenerator
from .generate import Generator, default_device, folder_of, generate, parse_shard
from .sam import MODELS, SamGenerator, load_sam
from .storage import MaskFolder


def _files(args: argparse.Namespace) -> list[str]:
    if args.images is not None:
        return [str(p) for p in find_images([args.images])]
    return [d["file_name"] for d in dataset_dicts(args.dataset)]


def _generator(args: argparse.Namespace) -> Generator:
    if args.generator == "classical":
        return ClassicalGenerator()
    if not args.weights:
        raise ConfigError(
            "--generator sam needs --weights, the checkpoint file of --model (published as sam_vit_h_4b8939.pth, "
            "sam_vit_l_0b3195.pth, sam_vit_b_01ec64.pth); --generator classical needs none"
        )
    sam = load_sam(args.model, args.weights, args.device or default_device())
    return SamGenerator(
        sam,
        args.points_per_side,
        args.prompts,
        args.predicted_iou,
        args.stability,
        name=args.model,
        digest=file_digest(args.weights),
    )


def _generate(args: argparse.Namespace) -> int:
    counts = generate(_files(args), _generator(args), MaskFolder(args.out), args.batch_size, parse_shard(args.shard))
    print(
        f"{args.out}: {counts['done']} images done ({counts['masks']} masks), {counts['present']} were there, "
        f"{counts['failed']} could not be read"
    )
    return 0


def _view(args: argparse.Namespace) -> int:
    folder, files = folder_of(args.masks), _files(args)
    have = [f for f in files if folder.path(f).is_file()]
    if not have:
        raise ConfigError(f"{args.masks} has masks of none of the {len(files)} images")
    chosen = [have[i] for i in np.linspace(0, len(have) - 1, min(args.count, len(have))).astype(int)]
    targets = [Path(args.out) / f"{name}.png" for name in picture_names(chosen)]
    images = {Path(file).resolve() for file in files}
    if replaced := [path for path in targets if path.resolve() in images]:
        raise ConfigError(
            f"--out {args.out}: pictures would replace images: {first_few(replaced)}; choose another folder"
        )
    for file, path in zip(chosen, targets, strict=True):
        image = read_image(file)
        save_mask_picture(path, image, folder.read(file, image.shape[:2]))
        print(path)
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m dearli_d2.masks", __doc__)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("generate", help="make the masks that are missing")
    make.add_argument("--out", required=True, metavar="FOLDER", help="a later call continues there")
    make.add_argument("--generator", choices=("sam", "classical"), default="sam", help="default: %(default)s")
    make.add_argument("--model", choices=MODELS, default="vit_h", help="size of SAM; default: %(default)s")
    make.add_argument("--weights", metavar="FILE", help="SAM's checkpoint, such as sam_vit_h_4b8939.pth")
    make.add_argument(
        "--points-per-side", type=positive, default=32, metavar="N", help="of SAM's grid; default: %(default)s"
    )
    make.add_argument(
        "--predicted-iou",
        type=float,
        default=0.88,
        metavar="X",
        help="SAM's own score of a mask, at least; default: %(default)s",
    )
    make.add_argument(
        "--stability", type=float, default=0.95, metavar="X", help="of a mask, at least; default: %(default)s"
    )
    make.add_argument(
        "--prompts",
        type=positive,
        default=256,
        metavar="N",
        help="points decoded at a time, fewer need less memory; default: %(default)s",
    )
    make.add_argument(
        "--batch-size", type=positive, default=1, metavar="N", help="images encoded at a time; default: %(default)s"
    )
    make.add_argument("--device", help="default: the GPU of this process, or cpu")
    make.add_argument("--shard", metavar="I/N", help="this process's share of the images; default: as torchrun says")
    make.set_defaults(run=_generate)
    view = commands.add_parser("view", help="write pictures of masks")
    view.add_argument("--masks", required=True, metavar="FOLDER", help="what generate wrote")
    view.add_argument("--out", required=True, metavar="FOLDER", help="of the pictures")
    view.add_argument("--count", type=positive, default=12, metavar="N", help="pictures; default: %(default)s")
    view.set_defaults(run=_view)
    for command in (make, view):
        source = command.add_mutually_exclusive_group(required=True)
        source.add_argument("--dataset", metavar="NAME", help="data set or view, such as ade20k_panoptic_train")
        source.add_argument("--images", type=Path, metavar="FOLDER", help="folder of images")
    args = parser.parse_args(argv)
    return report_errors(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())
