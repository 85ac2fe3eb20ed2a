"""Segments image files with a trained model.

For each image NAME it writes `NAME_panoptic.png` (segment id = R + 256 G + 65536 B), `NAME_semantic.png` (contiguous
class index) and `NAME_overlay.png` (with a legend), and for all together `predictions.json` in COCO-panoptic form, whose
categories have the class index as "id" and the id in the training data, such as the pixel value in own masks, as "dataset_id".
Images that cannot be read are reported and skipped. In Python: `dearli_d2.Predictor`.

Examples:

    python -m dearli_d2.predict --config-file output/miniworld/m2f_lang/config.yaml \\
        --weights output/miniworld/m2f_lang/model_final.pth photo.jpg folder/ --out predictions
    python -m dearli_d2.predict --config-file output/miniworld/m2f_lang/config.yaml \\
        --weights output/miniworld/m2f_lang/model_final.pth photo.jpg --out other_words --text "meadow|grass, sky, red thing"
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from tqdm import tqdm

from .arguments import add_config_file, command_parser
from .checkpoint import load_state
from .config import get_config
from .data.captions import read_captions
from .data.custom import listed_classes
from .data.images import find_images
from .data.mappers import TestMapper, enlarge_read_out, read_image
from .data.preparation import ids_to_rgb
from .data.taxonomy import Taxonomy, named, same_classes
from .errors import ConfigError, DatasetError, DearliError, first_few
from .files import write_atomically, write_json
from .modeling import build_model
from .modeling.semantic import class_segments
from .visualization import overlay, with_legend
from .weights import read_file, state_dict_of

logger = logging.getLogger(__name__)


def _with_read_out(config: CfgNode) -> CfgNode:
    """The config with every output on that a prediction is made of."""
    config = config.clone()
    config.defrost()
    config.TEST.SEMANTIC_ON = True
    config.TEST.PANOPTIC_ON = config.INPUT.TARGETS == "panoptic"
    return config


@dataclass(frozen=True)
class Prediction:
    """`panoptic` (H, W) int32 segment ids, 0 = none; `segments`: dicts with "id", "category_id", "isthing", "score";
    `semantic` (H, W) class indices; `taxonomy`: what the indices mean."""

    panoptic: np.ndarray
    segments: list[dict]
    semantic: np.ndarray
    taxonomy: Taxonomy


class Predictor:
    """A trained model, ready for images.

    Args:
        config: a config from `get_config`, or a config file.
        weights: checkpoint or weight file; None = MODEL.WEIGHTS of the config.
        class_names: other classes ("cat, dog|puppy, grass"); only for a text classifier (M2F-Lang).

    Raises:
        ConfigError, WeightsError.
    """

    def __init__(
        self, config: CfgNode | str | Path, weights: str | Path | None = None, class_names: str | None = None
    ) -> None:
        if not isinstance(config, CfgNode):
            config = get_config(config)
        config = _with_read_out(config)
        weights = weights or config.MODEL.WEIGHTS
        if not weights:
            raise ConfigError("prediction needs weights: --weights or MODEL.WEIGHTS")
        content = read_file(weights)
        taxonomy = Taxonomy.from_json(content["taxonomy"]) if "taxonomy" in content else None
        listed = listed_classes(config.DATASETS.CUSTOM)
        if taxonomy is not None and listed is not None and class_names is None:
            same_classes(taxonomy, named(config, listed), weights, "DATASETS.CUSTOM.CLASSES")
        self.model = build_model(config, taxonomy, load_backbone=False)
        which = "teacher" if config.TEST.WEIGHTS == "teacher" else "student"
        load_state(self.model, state_dict_of(content, weights, which), weights)
        if class_names is not None:
            self.model.set_taxonomy(Taxonomy.from_text(class_names))
        elif self.model.taxonomy is None:
            raise ConfigError(
                f"{weights} does not say its classes; register the data set of DATASETS.TRAIN or give class names"
            )
        self.model.eval()
        self.mapper = TestMapper(config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST)

    @torch.no_grad()
    def __call__(self, image: np.ndarray, caption: str | None = None) -> Prediction:
        """`image`: (H, W, 3) uint8 RGB. `caption`: for a model that reads one (SemiDAViL)."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DatasetError(f"an image is (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
        sample = self.mapper.prepare(image)
        output = self.model([sample if caption is None else {**sample, "caption": caption}])[0]
        # a semantic model has one segment a class
        panoptic, segments = output["panoptic_seg"] if "panoptic_seg" in output else class_segments(output["sem_seg"])
        maps = (x.cpu().numpy() for x in (panoptic, output["sem_seg"].argmax(0)))
        panoptic, semantic = (enlarge_read_out(x, image.shape[:2]) for x in maps)
        return Prediction(panoptic, segments, semantic, self.model.taxonomy)


def output_names(images: Sequence[Path]) -> list[str]:
    """A name for each image: its stem, with a number where stems repeat."""
    used: dict[str, int] = {}
    names = []
    for path in images:
        used[path.stem] = used.get(path.stem, 0) + 1
        names.append(path.stem if used[path.stem] == 1 else f"{path.stem}-{used[path.stem]}")
    return names


def captions_of(images: Sequence[Path], path: Path) -> dict[Path, str]:
    """The caption of each image from a caption file, by its path as given or else its file name. Raises `DatasetError`."""
    captions = read_captions(path)
    found = {image: captions.get(str(image), captions.get(image.name)) for image in images}
    missing = [str(image) for image, caption in found.items() if caption is None]
    if missing:
        raise DatasetError(f"{path}: {len(missing)} of {len(found)} images have no caption: {first_few(missing)}")
    return found


def predict_files(
    predictor: Predictor, images: Sequence[Path], out: Path, captions: Mapping[Path, str] | None = None
) -> list[tuple[Path, str]]:
    """Predicts and writes all images; damaged ones are reported and skipped.

    Args:
        captions: of the images, for a model that reads them.

    Returns:
        (path, reason) of the skipped images.
    """
    annotations, skipped = [], []
    for path, name, image in tqdm(_read_all(images, skipped), total=len(images), unit="image"):
        prediction = predictor(image, None if captions is None else captions[path])
        save_prediction(out, name, image, prediction)
        annotations.append(
            {
                "file_name": f"{name}_panoptic.png",
                "image": str(path),
                "height": image.shape[0],
                "width": image.shape[1],
                "segments_info": [
                    {**s, "category_name": prediction.taxonomy.main_names[s["category_id"]]}
                    for s in prediction.segments
                ],
            }
        )
    taxonomy = predictor.model.taxonomy
    classes = [
        {
            "id": i,
            "name": names[0],
            "isthing": int(i in taxonomy.thing_ids),
            "color": list(taxonomy.colors[i]),
            "dataset_id": taxonomy.dataset_ids[i],
        }
        for i, names in enumerate(taxonomy.names)
    ]
    failures = [{"image": str(p), "reason": r} for p, r in skipped]
    write_json(
        out / "predictions.json", {"annotations": annotations, "categories": classes, "skipped": failures}, indent=1
    )
    return skipped


def _read_all(images: Sequence[Path], skipped: list[tuple[Path, str]]) -> Iterator[tuple[Path, str, np.ndarray]]:
    for path, name in zip(images, output_names(images), strict=True):
        try:
            image = read_image(str(path))
        except DatasetError as error:
            logger.warning("skipped: %s", error)
            skipped.append((path, str(error)))
            continue
        yield path, name, image


def save_prediction(out: Path, name: str, image: np.ndarray, prediction: Prediction) -> None:
    """Writes the three PNG files of one image."""
    ids = prediction.panoptic
    depth = np.uint8 if len(prediction.taxonomy) < 256 else np.uint16
    drawn = overlay(image, ids, prediction.segments, prediction.taxonomy)
    shown = sorted({s["category_id"] for s in prediction.segments})
    pictures = {
        "panoptic": Image.fromarray(ids_to_rgb(ids)),
        "semantic": Image.fromarray(prediction.semantic.astype(depth)),
        "overlay": with_legend(drawn, shown, prediction.taxonomy),
    }
    for kind, picture in pictures.items():
        write_atomically(out / f"{name}_{kind}.png", picture.save)


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m dearli_d2.predict", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files and folders of them")
    add_config_file(parser)
    parser.add_argument("--weights", metavar="FILE", help="checkpoint; default: MODEL.WEIGHTS of the config")
    parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="where to write")
    parser.add_argument(
        "--text",
        metavar="CLASSES",
        help="other classes than those of training, 'cat, dog|puppy, grass': a comma between classes, | between synonyms; "
        "for models with a text classifier (M2F-Lang, DEARLi)",
    )
    parser.add_argument(
        "--captions",
        type=Path,
        metavar="FILE",
        help='JSON lines {"file", "caption"}, for a model that reads captions (SemiDAViL)',
    )
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="new values of config keys, in pairs"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        images = find_images(args.images)
        predictor = Predictor(get_config(args.config_file, args.opts), args.weights, args.text)
        captions = None if args.captions is None else captions_of(images, args.captions)
        skipped = predict_files(predictor, images, args.out, captions)
    except OSError as error:
        print(f"error: {args.out} cannot be written to: {error}", file=sys.stderr)
        return 2
    except DearliError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"predicted": len(images) - len(skipped), "skipped": len(skipped), "out": str(args.out)}))
    return 1 if len(skipped) == len(images) else 0


if __name__ == "__main__":
    sys.exit(main())
