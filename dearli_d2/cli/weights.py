"""`dearli weights`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .base import Group

if TYPE_CHECKING:
    from ..weight_list import PublishedWeights


@click.group(cls=Group)
def weights() -> None:
    """Lists published weights, and downloads them.

    Backbones, Segment Anything and the papers' checkpoints have names such as timm/vit_small_patch14_dinov2.lvd142m and
    sam/vit_h. Files are looked for in $DEARLI_WEIGHTS (else ./weights) and in the caches of this project, of the Hugging Face hub
    and of torch.

    Examples:

        dearli weights list sam
        dearli weights show sam/vit_h
        dearli weights get sam/vit_h
        dearli weights path sam/vit_h
    """


@weights.command("list")
@click.argument("pattern", required=False, default="")
def list_(pattern: str) -> None:
    """Lists weights with size, licence, and whether they are on this machine.

    PATTERN is a part of the name or of what it says, or a pattern with * and ?.

    Examples:

        dearli weights list
        dearli weights list dinov2
        dearli weights list "dearli/ade20k/*"
    """
    from fnmatch import fnmatchcase

    from ..errors import WeightsError
    from ..weight_list import published

    wanted = pattern.lower() if set(pattern) & set("*?") else f"*{pattern.lower()}*"
    found = [w for w in published().values() if any(fnmatchcase(t.lower(), wanted) for t in (w.name, w.what))]
    if not found:
        raise WeightsError(f"no weights have {pattern!r} in their name; dearli weights list shows all")
    rows = [("name", "size", "licence", "here", "what")]
    rows += [(w.name, w.size, w.licence or "not known", _here(w), w.what) for w in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _here(weights: PublishedWeights) -> str:
    from ..errors import WeightsError
    from ..weight_list import cached

    try:
        return "" if cached(weights) is None else "yes"
    except WeightsError:
        return "damaged"


@weights.command()
@click.argument("name")
def show(name: str) -> None:
    """Shows all that is known about weights, and how to get them.

    Example:

        dearli weights show dearli/ade20k/dear/1_128
    """
    from ..weight_list import UNKNOWN, cached, find, how_to_get

    found = find(name)
    path = cached(found)
    size = f"{found.size} ({found.bytes} bytes)" if found.bytes else found.size
    checksums = ", ".join(f"{a.upper()} {digits}" for a, digits in found.checksums.items())
    for key, value in {
        "name": found.name,
        "what": found.what,
        "source": found.source,
        "file": ", else ".join(found.files),
        "size": size,
        "checksum": checksums,
        "licence": found.licence,
        "paper": found.paper,
        "code": found.code,
        "here": str(path) if path else f"no; {how_to_get(found)}",
    }.items():
        click.echo(f"{key:9} {value or UNKNOWN}")


@weights.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def get(names: tuple[str, ...]) -> None:
    """Downloads weights, and checks size and checksum where they are published.

    Files of the Hugging Face hub go to its cache, others to that of this project. A second call continues what was interrupted,
    and checks a file that is here.

    Example:

        dearli weights get sam/vit_h open_clip/ViT-B-16/openai
    """
    from ..weight_list import get

    for name in names:
        click.echo(get(name))


@weights.command()
@click.argument("name")
def path(name: str) -> int:
    """Prints where a file lies on this machine.

    The exit status is 1 where it is not here. The network is not used.

    Example:

        dearli weights path sam/vit_h
    """
    from ..errors import WeightsError
    from ..weight_list import find, path_of

    known = find(name)
    try:
        click.echo(path_of(known.name))
    except WeightsError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    return 0
