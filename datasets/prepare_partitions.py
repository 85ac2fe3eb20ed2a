#!/usr/bin/env python
"""Published lists of labelled images, from a checkout of their authors' repository.

    git clone https://github.com/LiheYoung/UniMatch-V2
    dearli prepare partitions UniMatch-V2
    dearli prepare partitions

The repositories are small and need no registration. All are under the MIT or the Apache licence.

    https://github.com/LiheYoung/UniMatch-V2     splits/: ADE20K, Cityscapes, COCO, Pascal VOC
    https://github.com/LiheYoung/UniMatch        splits/: Cityscapes, COCO, Pascal VOC with the parts of the augmented set
    https://github.com/google-research/semivl    splits/: ADE20K with 1_128, Cityscapes, COCO, Pascal VOC
    https://github.com/helen1c/DEARLi            datasets/ade_splits and coco_splits: the lists of SemiVL

It writes $DETECTRON2_DATASETS/partitions/{ade20k,cityscapes,coco,pascal}/PART/labeled.txt and unlabeled.txt. UniMatch's parts 1_16, 1_8
and 1_4 of the augmented Pascal VOC are called aug_662, aug_1323 and aug_2645 here, and u2pl_1_16 is u2pl_662. Numbers of images are
compared with the published ones, and the lists with those known. A list that is there already stays. Without FOLDER, the lists in
place are checked.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from dearli_d2.cli.base import FILE_OR_FOLDER, command, run
from dearli_d2.data.partitions import PUBLISHED
from dearli_d2.data.sources import datasets_root
from dearli_d2.errors import DatasetError, first_few
from dearli_d2.files import read_text, remove_leftovers, write_atomically

# our folder: a data set of `partitions.PUBLISHED`, and the names of the folder in the repositories
BENCHMARKS = {
    "ade20k": ("ade20k_panoptic_train", ("ade20k", "ade", "ade_splits")),
    "cityscapes": ("cityscapes_train", ("cityscapes",)),
    "coco": ("coco_panoptic_train", ("coco", "coco_splits")),
    "pascal": ("pascal_voc_train", ("pascal",)),
}
_SIZES = {"1_16": 662, "1_8": 1323, "1_4": 2645}
PASCAL_PARTS = {
    **{part: f"aug_{size}" for part, size in _SIZES.items()},
    **{f"u2pl_{part}": f"u2pl_{size}" for part, size in _SIZES.items()},
}
# first 16 digits of the SHA-256 of the names of the labelled images, one a line, as read from the four repositories
KNOWN = {
    "ade20k/1_128": {"56022c640d5c0653": "SemiVL, DEARLi"},
    "ade20k/1_64": {"87fa7c18643bbc7d": "SemiVL, DEARLi, UniMatch V2"},
    "ade20k/1_32": {"b20a528f8ba55a3e": "SemiVL, DEARLi: 632 images", "4be372a5dd092af7": "UniMatch V2: 631 images"},
    "ade20k/1_16": {"dec595e4480d028f": "SemiVL, DEARLi, UniMatch V2"},
    "ade20k/1_8": {"043b3d064d1a28fb": "SemiVL, DEARLi, UniMatch V2"},
    "ade20k/1_4": {"b897c76670835277": "UniMatch V2"},
    "ade20k/1_2": {"b2f65b9c1efbb493": "UniMatch V2"},
    "cityscapes/1_30": {"8ed7bf69f081e035": "UniMatch, UniMatch V2, SemiVL"},
    "cityscapes/1_16": {"60ba69577e2ca64c": "UniMatch, UniMatch V2, SemiVL"},
    "cityscapes/1_8": {"0bd0fbd5ff4e66ed": "UniMatch, UniMatch V2, SemiVL"},
    "cityscapes/1_4": {"2641705fbdbd733b": "UniMatch, UniMatch V2, SemiVL"},
    "cityscapes/1_2": {"26a9cd234e333827": "UniMatch, UniMatch V2, SemiVL"},
    "coco/1_512": {"33d6e2ee9b7b6969": "UniMatch, UniMatch V2, SemiVL, DEARLi"},
    "coco/1_256": {"da9e5582dec4b230": "UniMatch, UniMatch V2, SemiVL, DEARLi"},
    "coco/1_128": {"939ac66ca4bd2625": "UniMatch, UniMatch V2, SemiVL, DEARLi"},
    "coco/1_64": {"6e390434ed720115": "UniMatch, UniMatch V2, SemiVL, DEARLi"},
    "coco/1_32": {"4212c1ccbe192b2d": "UniMatch, UniMatch V2, SemiVL, DEARLi"},
    "pascal/92": {"c445196d5645edc2": "UniMatch, UniMatch V2, SemiVL"},
    "pascal/183": {"7cb90b40ae458c09": "UniMatch, UniMatch V2, SemiVL"},
    "pascal/366": {"3d25a0e3cb6d05e8": "UniMatch, UniMatch V2, SemiVL"},
    "pascal/732": {"0467bbdf35c77442": "UniMatch, UniMatch V2, SemiVL"},
    "pascal/1464": {"f0e8d38b2b4f30c8": "UniMatch, UniMatch V2, SemiVL"},
    "pascal/aug_662": {"9127c95c80b4033e": "UniMatch"},
    "pascal/aug_1323": {"252e71813a46991f": "UniMatch"},
    "pascal/aug_2645": {"3f03293e2ea39c7a": "UniMatch: 2646 images"},
    "pascal/u2pl_662": {"e7039b23094baa74": "UniMatch"},
    "pascal/u2pl_1323": {"f92c8df694c9ca3c": "UniMatch"},
    "pascal/u2pl_2645": {"916cd9472fd4faeb": "UniMatch: 2646 images"},
}


@dataclass(frozen=True)
class Lists:
    """`name` is BENCHMARK/PART in our words, and `folder` holds labeled.txt and perhaps unlabeled.txt."""

    name: str
    folder: Path

    def names(self, file: str) -> list[str]:
        """Names of images, which are the first column."""
        path = self.folder / file
        lines = read_text(path, DatasetError).splitlines() if path.is_file() else []
        return [line.split()[0] for line in lines if line.strip()]

    def digest(self) -> str:
        """Of the labelled images, as in `KNOWN`."""
        return hashlib.sha256("\n".join(self.names("labeled.txt")).encode()).hexdigest()[:16]


def find(folder: Path) -> list[Lists]:
    """The lists of published partitions in a checkout, its folder of lists, or our own partition folder."""
    found = {}
    for root in (folder / "splits", folder / "datasets", folder):
        for ours, (dataset, theirs) in BENCHMARKS.items():
            for path in sorted(p for name in theirs for p in (root / name).glob("*/labeled.txt")):
                part = path.parent.name
                part = PASCAL_PARTS.get(part, part) if ours == "pascal" else part
                if part in PUBLISHED[dataset].labeled:
                    found.setdefault(f"{ours}/{part}", Lists(f"{ours}/{part}", path.parent))
    return list(found.values())


def problem_of(lists: Lists) -> str:
    """Describes what is wrong with the lists of a partition, or ""."""
    benchmark, _, part = lists.name.partition("/")
    published = PUBLISHED[BENCHMARKS[benchmark][0]]
    labeled, unlabeled = lists.names("labeled.txt"), lists.names("unlabeled.txt")
    counts = [count for count in (published.labeled[part], published.elsewhere.get(part)) if count]
    if len(labeled) not in counts:
        return f"{lists.folder / 'labeled.txt'} has {len(labeled)} images, the published list {' or '.join(map(str, counts))}"
    twice = len(labeled + unlabeled) - len({*labeled, *unlabeled})
    if twice:
        return f"{lists.folder}: {twice} images are listed twice"
    if unlabeled and len(labeled) + len(unlabeled) != published.images:
        return f"{lists.folder} lists {len(labeled) + len(unlabeled)} images, the data set has {published.images}"
    return ""


def install(lists: Lists, target: Path) -> str:
    """Copies the lists of a partition to their place; says what was done."""
    there = Lists(lists.name, target / lists.name)
    if (there.folder / "labeled.txt").is_file():
        if there.digest() == lists.digest():
            return "is there already"
        return f"warning: another list stays there ({source_of(there)}); delete {there.folder} to get this one ({source_of(lists)})"
    remove_leftovers(there.folder, age=0)
    for file in ("unlabeled.txt", "labeled.txt"):  # a part is one that has labeled.txt
        if (lists.folder / file).is_file():
            content = (lists.folder / file).read_bytes()
            write_atomically(there.folder / file, lambda temporary, c=content: temporary.write_bytes(c))
    return f"copied ({source_of(lists)})"


def source_of(lists: Lists) -> str:
    """The repositories that have this very list."""
    return KNOWN[lists.name].get(lists.digest(), "warning: none of the known lists; was it edited?")


@command(help=__doc__)
@click.argument("folder", required=False, type=FILE_OR_FOLDER, metavar="[FOLDER]")
def main(folder: Path | None) -> None:
    target = datasets_root() / "partitions"
    found = find(folder or target)
    if not found:
        raise DatasetError(
            f"{folder or target} has no published lists (splits/BENCHMARK/PART/labeled.txt); clone one of the repositories that "
            "dearli prepare partitions --help names, and give its folder"
        )
    problems = [problem for problem in map(problem_of, found) if problem]
    if problems:
        raise DatasetError(
            f"{len(problems)} of {len(found)} partitions are not as published: {first_few(problems)}. Get the lists again"
        )
    for lists in found:
        state = install(lists, target) if folder else source_of(lists)
        print(f"{lists.name}: {len(lists.names('labeled.txt'))} labelled images, {state}")


if __name__ == "__main__":
    sys.exit(run(main))
