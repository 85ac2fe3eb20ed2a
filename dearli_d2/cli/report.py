"""`dearli report`."""

from __future__ import annotations

from pathlib import Path

import click

from .base import FILE_OR_FOLDER, command


@command()
@click.argument("runs", metavar="RUN...", type=FILE_OR_FOLDER, nargs=-1, required=True)
@click.option("--out", type=FILE_OR_FOLDER, metavar="FILE", required=True, help="HTML file to write.")
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Writes one HTML file about training runs, which opens without a network.

    RUN is the folder of a run, which may still go on. The page shows scores, curves, classes, confusions, images with good and with
    bad results, pseudo-labels, settings and warnings. Several runs stand side by side. Runs that differ in the seed alone are one
    line with their mean and standard deviation.

    Examples:

        dearli report output/miniworld/m2f_lang --out report.html
        dearli report output/a/seed_* output/b/seed_* --out comparison.html
    """
    from ..report import write_report

    for note in write_report(runs, out):
        click.echo(f"note: {note}", err=True)
    print(out)
