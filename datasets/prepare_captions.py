#!/usr/bin/env python
"""Captions of the images of a data set, one JSON line each, in $DETECTRON2_DATASETS/captions/NAME.jsonl.

    dearli prepare captions cityscapes_train gta5_train --model /models/blip2-opt-2.7b --batch 8 --shard 0/4
    dearli prepare captions cityscapes_train@1_8 --from-labels

--model is any image-to-text model of `transformers` (BLIP-2 in the paper), a folder on this machine or a name of its hub.
--from-labels names the annotated classes instead, largest first; only for images whose labels training reads anyway.
An interrupted run resumes. With --shard i/n each of n processes makes its share; the last one to finish joins the files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import islice
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dearli_d2.cli.base import POSITIVE, command, run
from dearli_d2.data.captions import caption_file, read_captions
from dearli_d2.data.catalog import class_areas, dataset_dicts, source_of, split_name, taxonomy_of
from dearli_d2.data.images import read_image, relative_name
from dearli_d2.data.preparation import listed
from dearli_d2.download import is_hub_name, only_cache_if_offline
from dearli_d2.errors import ConfigError, DatasetError, first_few
from dearli_d2.files import write_atomically

# images (as dicts) to captions
Captioner = Callable[[Sequence[dict]], list[str]]
_ENOUGH = 20  # images without a caption after which a run stops


def load_captioner(path: str, max_tokens: int) -> Captioner:
    """A `transformers` image-to-text model, on the GPU where there is one.

    Raises:
        ConfigError: no `transformers`, or no such model. WeightsError: it is not here, and the hub does not answer.
    """
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor
    except ImportError as error:
        raise ConfigError("captions need the package transformers: pip install transformers") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with only_cache_if_offline(path) if is_hub_name(path) else nullcontext():
            processor = AutoProcessor.from_pretrained(path)
            model = AutoModelForImageTextToText.from_pretrained(path).to(device).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model {path} cannot be loaded as an image-to-text model: {error}") from error

    @torch.no_grad()
    def caption(dicts: Sequence[dict]) -> list[str]:
        images = [Image.fromarray(read_image(d["file_name"])) for d in dicts]
        inputs = processor(images=images, return_tensors="pt").to(device)
        tokens = model.generate(**inputs, max_new_tokens=max_tokens)
        return [" ".join(text.split()) for text in processor.batch_decode(tokens, skip_special_tokens=True)]

    return caption


def label_captioner(name: str, most: int) -> Captioner:
    """Names the `most` largest annotated classes. Raises `DatasetError` for images without annotations."""
    names = taxonomy_of(name).main_text_names

    def one(d: dict) -> str:
        if not d.get("segments_info"):
            raise DatasetError(f"{d['file_name']} has no annotation; --from-labels is for labelled images")
        area = class_areas([d], len(names), "--from-labels")[0]
        if not area.any():
            raise DatasetError(f"{d['file_name']}: all its annotations are crowds; write its caption by hand")
        return f"a photo of {listed([names[c] for c in np.argsort(-area)[:most] if area[c]])}"

    return lambda dicts: [one(d) for d in dicts]


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f".{path.stem}.part-*.jsonl"))


def _made(path: Path) -> dict[str, dict]:
    """Lines by file that earlier runs and other shards have written; a last line that a kill cut off is left out."""
    entries = {}
    for part in [*([path] if path.is_file() else []), *_parts(path)]:
        for line in part.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            entries[entry["file"]] = entry
    return entries


def write_captions(
    name: str, captioner: Captioner, model: str, batch: int, shard: int = 0, shards: int = 1
) -> tuple[int, int]:
    """Makes this shard's missing captions of a data set or view.

    Returns:
        Captions made now, and images of the data set that still have none.

    Raises:
        DatasetError: images that are damaged, or for which the captioner has no words. The captions of the others are kept.
    """
    path, root = caption_file(name), source_of(name).image_root
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        read_captions(path)  # a broken file is not added to
    dicts = {relative_name(d["file_name"], root): d for d in dataset_dicts(name)}
    mine = list(dicts)[shard::shards]
    done = _made(path)
    todo = [f for f in mine if f not in done]
    part = path.with_name(f".{path.stem}.part-{shard}-{shards}.jsonl")
    if part.is_file() and not part.read_text(encoding="utf-8").endswith("\n"):
        whole = part.read_text(encoding="utf-8").rpartition("\n")
        write_atomically(part, lambda temporary: temporary.write_text(whole[0] + whole[1], encoding="utf-8"))
    failed: list[str] = []
    with (
        part.open("a", encoding="utf-8") as out,
        tqdm(total=len(mine), initial=len(mine) - len(todo), desc=name) as bar,
    ):
        for files in _chunks(todo, batch):
            texts = _texts(captioner, {f: dicts[f] for f in files}, failed)
            for file, text in texts.items():
                out.write(json.dumps({"file": file, "caption": text, "model": model}) + "\n")
            out.flush()
            bar.update(len(files))
            if len(failed) >= _ENOUGH:
                break
    if failed:
        raise DatasetError(f"{name}: {len(failed)} of {len(todo)} images get no caption: {first_few(failed)}")
    left = _join(path, dicts)
    return len(todo), left


def _texts(captioner: Captioner, dicts: dict[str, dict], failed: list[str]) -> dict[str, str]:
    """Captions of a batch by file. Images without one are named in `failed`: after an error, each is tried alone."""
    try:
        texts = captioner(list(dicts.values()))
    except DatasetError as error:
        if len(dicts) > 1:
            return {k: v for file, d in dicts.items() for k, v in _texts(captioner, {file: d}, failed).items()}
        failed.append(str(error))
        return {}
    failed += [f"no word for {file}" for file, text in zip(dicts, texts, strict=True) if not text.strip()]
    return {file: text for file, text in zip(dicts, texts, strict=True) if text.strip()}


def _join(path: Path, dicts: dict[str, dict]) -> int:
    """All parts into the one file, once no image lacks a caption; returns how many do."""
    entries = _made(path)
    left = sum(file not in entries for file in dicts)
    if not left:
        text = "".join(json.dumps(entries[file]) + "\n" for file in sorted(entries))
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        for part in _parts(path):
            part.unlink(missing_ok=True)
    return left


def _chunks(items: Sequence[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


@command(help=__doc__, one_of=("model", "from_labels"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--model", metavar="MODEL", help="Folder or hub name of an image-to-text model.")
@click.option("--from-labels", is_flag=True, help="Name the annotated classes.")
@click.option("--batch", type=POSITIVE, default=8, metavar="N", show_default=True, help="Images at a time.")
@click.option(
    "--max-tokens",
    type=POSITIVE,
    default=30,
    metavar="N",
    show_default=True,
    help="Of a generated caption. CLIP reads 77 with its own two.",
)
@click.option(
    "--max-classes", type=POSITIVE, default=12, metavar="N", show_default=True, help="That --from-labels names."
)
@click.option("--shard", default="0/1", metavar="I/N", show_default=True, help="Which of how many processes this is.")
def main(
    names: tuple[str, ...],
    model: str | None,
    from_labels: bool,
    batch: int,
    max_tokens: int,
    max_classes: int,
    shard: str,
) -> None:
    share, _, shares = shard.partition("/")
    if not (share.isdigit() and shares.isdigit() and int(share) < int(shares)):
        raise ConfigError(f"--shard {shard} is not i/n with i below n")
    loaded = lru_cache(maxsize=1)(load_captioner)
    for name in names:
        split_name(name)
        source = "labels" if model is None else Path(model).name
        # the model is loaded once an image needs it, so that a repeated command is quick and needs no model
        captions = (lambda dicts: loaded(model, max_tokens)(dicts)) if model else label_captioner(name, max_classes)
        made, left = write_captions(name, captions, source, batch, int(share), int(shares))
        state = f"all in {caption_file(name)}" if not left else f"{left} images are left to other shards"
        print(f"{name}: {made} captions made, {state}")


if __name__ == "__main__":
    sys.exit(run(main))
