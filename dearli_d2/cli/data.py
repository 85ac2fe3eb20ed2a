"""`dearli data`: labels in the formats of labelling tools, and generated data."""

from __future__ import annotations

import math
from pathlib import Path

import click

from .base import FILE_OR_FOLDER, POSITIVE, Group, PictureFile


@click.group(cls=Group)
def data() -> None:
    """Converts labels of labelling tools, and writes data that are generated: an example of own data, and miniworld.

    Examples:

        dearli data formats
        dearli data example --out mine
        dearli data preview --out miniworld.png
    """


@data.command()
@click.option("--out", type=FILE_OR_FOLDER, metavar="FOLDER", required=True, help="Folder to write.")
@click.option("--labeled", type=POSITIVE, default=40, metavar="N", show_default=True, help="Images with masks.")
@click.option(
    "--unlabeled", type=click.IntRange(min=0), default=200, metavar="N", show_default=True, help="Images without masks."
)
def example(out: Path, labeled: int, unlabeled: int) -> None:
    """Writes an example of own data, made of generated scenes.

    The folder has the layout that `docs/custom_data.md` describes: images with index masks, images without masks, and a list
    of classes.

    Example:

        dearli data example --out mine
    """
    from ..data.custom_example import write_example

    write_example(out, labeled, unlabeled)
    print(f"{out}: {labeled} labelled and {unlabeled} unlabelled images, classes in classes.txt")


@data.command()
@click.option(
    "--out",
    type=PictureFile(),
    default="output/miniworld.png",
    metavar="FILE",
    show_default=True,
    help="Picture to write.",
)
def preview(out: Path) -> None:
    """Draws some scenes of miniworld and their segments in one picture.

    Example:

        dearli data preview --out miniworld.png
    """
    from ..data.miniworld import preview

    preview(out)
    print(out)


@data.command()
def generate() -> None:
    """Generates miniworld in the cache folder, and prints where.

    Training does the same when it reads miniworld for the first time. There are two domains, day and night.

    Example:

        dearli data generate
    """
    from ..data.miniworld import DOMAINS, root

    for domain in DOMAINS:
        print(root(domain))


@data.command("tiny-clip")
@click.option("--steps", type=POSITIVE, default=3500, metavar="N", show_default=True, help="Steps of training.")
@click.option("--scenes", type=POSITIVE, default=5000, metavar="N", show_default=True, help="Scenes to take crops of.")
@click.option("--out", type=FILE_OR_FOLDER, metavar="FILE", required=True, help="File to write, .safetensors.")
def tiny_clip(steps: int, scenes: int, out: Path) -> None:
    """Trains the small CLIP model of miniworld anew, in about nine minutes on two CPU cores.

    The package brings its weights along, so nobody needs to do this.

    Example:

        dearli data tiny-clip --out clip.safetensors
    """
    from ..modeling.backbone.tiny_clip import oracle_accuracy, save, train

    model = train(steps, scenes)
    save(model, out)
    shares = (f"{name} {math.floor(1000 * share) / 10} %" for name, share in oracle_accuracy(model).items())
    print("right class under ground-truth masks:", ", ".join(shares))


@data.command()
def formats() -> None:
    """Lists the formats of labels that are read and written.

    Example:

        dearli data formats
    """
    from tabulate import tabulate

    from ..labels.formats import formats as known

    rows = [[f.name, f.title, "yes", "yes" if f.writer else "no"] for f in known().values()]
    print(tabulate(rows, ["name", "format", "read", "written"]))


@data.command("look")
@click.argument("labels", type=FILE_OR_FOLDER)
@click.option(
    "--images", type=FILE_OR_FOLDER, metavar="FOLDER", help="Folder of the images; default: the folder of the labels."
)
@click.option("--format", "source", metavar="NAME", default="", help="Format of the labels; default: it is recognised.")
@click.option("--picture", type=PictureFile(), metavar="FILE", help="Picture to write: images beside their labels.")
def look_at(labels: Path, images: Path | None, source: str, picture: Path | None) -> int:
    """Shows what labels hold: format, classes, counts, sizes, splits, what training refuses, and what is suspicious.

    LABELS is a file or a folder, such as the export of a labelling tool. Nothing is trained and nothing is changed. The last lines
    are those of a config that reads the labels. They have the class list of classes.txt in the folder of the images, or else one
    that is proposed. The pieces of a large folder are counted for five seconds, in images that are spread evenly.

    The exit status is 2 where training would refuse the labels.

    Example:

        dearli data look export --images photos --picture sheet.jpg
    """
    from ..data.custom_classes import classes_of_root
    from ..labels.look import labels_below, look, report, write_picture
    from ..labels.structures import Request

    path = labels if source else labels_below(labels)
    folder = images or (labels if labels.is_dir() else labels.parent)
    found = look(Request(path, folder, classes=tuple(classes_of_root(folder, labels=True))), source)
    print(report(found))
    if picture is not None:
        write_picture(found, picture)
        print(f"\n{picture}: images beside their labels")
    return 2 if found.refused else 0


@data.command()
@click.argument("labels", type=FILE_OR_FOLDER)
@click.option("--to", metavar="NAME", required=True, help="Format to write; `dearli data formats` lists them.")
@click.option("--out", type=FILE_OR_FOLDER, metavar="FOLDER", required=True, help="Folder to write.")
@click.option(
    "--images", type=FILE_OR_FOLDER, metavar="FOLDER", help="Folder of the images; default: the folder of the labels."
)
@click.option("--format", "source", metavar="NAME", default="", help="Format of the labels; default: it is recognised.")
@click.option("--overwrite", is_flag=True, help="Replace the folder --out.")
def convert(labels: Path, to: str, out: Path, images: Path | None, source: str, overwrite: bool) -> None:
    """Writes labels in another format.

    LABELS is a file or a folder, such as the export of a labelling tool or `predictions.json` of `dearli predict`. Regions that
    overlap are cut: objects lie on stuff, small objects on large ones. The folder --out is whole or absent.

    Example:

        dearli data convert export/instances.json --images photos --to yolo-seg --out yolo
    """
    from ..labels.convert import writable, write_labels
    from ..labels.recognition import read_labels
    from ..labels.structures import Request

    folder = images or (labels if labels.is_dir() else labels.parent)
    found = read_labels(Request(labels, folder), source)
    for note in found.notes:
        click.echo(f"warning: {note}", err=True)
    count = write_labels(found, writable(to), out, folder, overwrite)
    print(f"{out}: {count} images with {len(found.classes)} classes as {to}")
