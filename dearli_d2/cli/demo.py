"""`dearli demo`."""

from __future__ import annotations

from pathlib import Path

import click

from .base import FILE_OR_FOLDER, POSITIVE, command


@command()
@click.option(
    "--out",
    type=FILE_OR_FOLDER,
    default=Path("output/demo"),
    metavar="FOLDER",
    show_default=True,
    help="Folder to write.",
)
@click.option(
    "--seeds", type=POSITIVE, default=1, metavar="N", show_default=True, help="Climbs, each with other labels."
)
@click.option(
    "--iterations", type=click.IntRange(min=5), default=500, metavar="N", show_default=True, help="Of each training."
)
@click.option("--warmup", type=POSITIVE, default=100, metavar="N", show_default=True, help="Iterations of the warm-up.")
def demo(out: Path, seeds: int, iterations: int, warmup: int) -> None:
    """Trains the DEARLi ladder on generated data, in minutes on a CPU.

    The rungs are: labels only, + SSL, + ensembled pseudo-labels (DEAR), + decoder warm-up (DEARLi). The demo takes the first
    400 scenes of miniworld with 5 % of their labels: 20 labelled scenes for 16 classes, as few images a class as in the paper's
    smallest splits. The same command continues after an interruption. It ends with a table and a report with pictures,
    report.md in the folder --out. `make demo` climbs once, `make ladder` with three seeds.

    Examples:

        dearli demo
        dearli demo --out output/ladder --seeds 3 --iterations 600
    """
    from ..demo import run

    result = run(out, seeds, iterations, warmup)
    print(f"\n{result}\n\nreport: {out / 'report.md'}")
