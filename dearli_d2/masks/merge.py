"""Folders of masks as a whole: checked, joined, and written in another layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..errors import ConfigError, DatasetError, first_few
from ..progress import progress
from .storage import MaskFolder, parsed


def verify(folder: MaskFolder) -> Counter[str]:
    """Reads all mask files of a folder, with their checksums.

    Returns:
        Counts "images", "masks", "bytes" (of the unpacked mask files), "shards".

    Raises:
        DatasetError: damaged shards or mask files, of which the first are named.
    """
    counts: Counter[str] = Counter()
    stems: set[str] = set()
    wrong: list[str] = []
    for record in progress(folder.scan(), "masks"):
        if isinstance(record, DatasetError):
            wrong.append(str(record))
            continue
        own, codes, problem = parsed(record.content)
        if problem or not own:
            wrong.append(f"{record.stem}.json: {problem}")
        stems.add(record.stem)
        counts.update(masks=len(codes), bytes=len(record.content))
    if wrong:
        raise DatasetError(f"{folder.folder}: {len(wrong)} mask files or shards are damaged: {first_few(wrong)}")
    return counts + Counter(images=len(stems), shards=len(folder.shards.files()))


def merge(sources: Sequence[MaskFolder], out: MaskFolder) -> int:
    """Writes the masks of several folders to one, in the layout of `out`. A second call goes on where the first one ended.

    Args:
        sources: folders that `generate` made with the same settings.
        out: its own masks stay.

    Returns:
        Number of images in `out`.

    Raises:
        ConfigError: folders of different settings.
        DatasetError: a damaged shard, or different masks of one image.
    """
    _check_settings([*sources, *([out] if out.manifest() is not None else [])])
    out.write_manifest(out.manifest() or sources[0].manifest() or {})
    written: list[str] = []
    for source in sources:
        other = []
        for record in progress(source.records(), f"masks of {source.folder}"):
            name = f"{record.stem}.json"
            if out.holds(record):
                continue
            if out.has(name):
                other.append(record.stem)
            else:
                out.write_record(record)
                written.append(name)
        if other:
            raise DatasetError(
                f"{len(other)} images have other masks in {source.folder} than in {out.folder}: {first_few(other)}"
            )
    out.pack(written)
    failed = [entry for source in sources for entry in source.failures() if not out.has(entry["file"])]
    if failed:
        out.write_failures(0, 1, [entry["file"] for entry in failed], failed)
    return sum(1 for _ in out.records())


def _check_settings(folders: Sequence[MaskFolder]) -> None:
    first, *others = [(f.folder, {k: v for k, v in (f.manifest() or {}).items() if k != "dearli_d2"}) for f in folders]
    for folder, own in others:
        for key in {**first[1], **own}:
            if first[1].get(key) != own.get(key):
                raise ConfigError(
                    f"{first[0]} and {folder} were made with different {key}: {first[1].get(key)} and {own.get(key)}"
                )
