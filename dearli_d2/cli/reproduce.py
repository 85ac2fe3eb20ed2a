"""`dearli reproduce`."""

from __future__ import annotations

from pathlib import Path

import click

from .base import FILE_OR_FOLDER, POSITIVE, Group, overrides

_out = click.option(
    "--out",
    type=FILE_OR_FOLDER,
    metavar="FOLDER",
    default=Path("output/reproduce"),
    show_default=True,
    help="Folder of all rows and of the stages that they share.",
)


class Rows(Group):
    """The commands, and the names of rows, which stand for `run`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command of the first argument."""
        return super().resolve_command(ctx, ["run", *args] if "/" in args[0] else args)


@click.group(cls=Rows)
def reproduce() -> None:
    """Reproduces a row of a table of the papers by one command, from masks and warm-ups to the figure.

    A row has a name such as dearli/ade20k/1_128: paper, row, column. `dearli reproduce ROW` is `dearli reproduce run ROW`.

    Examples:

        dearli reproduce list
        dearli reproduce show dearli/ade20k/1_128
        dearli reproduce dearli/ade20k/1_128
        dearli reproduce table dearli 1
    """


@reproduce.command("list")
@click.argument("pattern", default="", metavar="[PATTERN]")
@click.option("--paper", metavar="NAME", default="", help="Rows of this paper alone.")
@_out
def list_(pattern: str, paper: str, out: Path) -> None:
    """Lists the rows of all tables: what each needs, and our figure where it is finished.

    PATTERN is a part of a row's name, or a pattern with *. "ready" means that the data are there. `dearli reproduce show` names
    all that a row needs. Behind our figure, ± is the standard error over several seeds, ° marks a published checkpoint and * overridden settings.

    Examples:

        dearli reproduce list
        dearli reproduce list ade20k --paper dearli
    """
    from ..reproduction.listing import list_rows

    for block in list_rows(pattern, paper, out):
        click.echo(block)


@reproduce.command()
@click.argument("row", metavar="ROW")
@_out
def show(row: str, out: Path) -> None:
    """Shows a row: the paper's figure, the commands in order, and what they need and cost.

    Example:

        dearli reproduce show dearli/ade20k/1_128
    """
    from ..reproduction.papers import find
    from ..reproduction.show import show

    click.echo(show(find(row), out))


@reproduce.command()
@click.argument("row_to_run", metavar="ROW")
@click.option("--stage", metavar="NAME", default="", help="Make this stage alone; `dearli reproduce show` names them.")
@click.option("--official", is_flag=True, help="Evaluate the published checkpoint of the row, and train nothing.")
@click.option("--dry-run", is_flag=True, help="Check what is there and print the commands, and start nothing.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="Train the row once more with this seed, in a folder of its own.",
)
@click.option("--num-gpus", type=POSITIVE, default=1, metavar="N", show_default=True, help="GPUs of this machine.")
@_out
@overrides
def run(
    row_to_run: str, stage: str, official: bool, dry_run: bool, seed: int | None, num_gpus: int, out: Path,
    overrides: tuple[str, ...],
) -> int:  # fmt: skip
    """Makes a row: checks data, weights and settings of all its stages, then runs those that are not finished.

    The same command continues after an interruption of any kind. At the end it compares our figures with the paper's, and
    writes reproduction.json and reproduction.html to the folder of the row. KEY VALUE pairs go to every stage that reads a
    config. Those of the evaluation, DATASETS.TEST and TEST, go to the last training alone. Seeds share the stages before the
    training, and tables show the mean of all seeds.

    Examples:

        dearli reproduce run miniworld/hvl
        dearli reproduce run dearli/ade20k/1_128 --dry-run
        dearli reproduce run dearli/ade20k/1_128 --official
        dearli reproduce run miniworld/hvl --seed 1
    """
    from ..reproduction.papers import find
    from ..reproduction.run import run
    from ..reproduction.stages import Choice

    return run(find(row_to_run), Choice(out, num_gpus, overrides, official, seed), stage, dry_run)


@reproduce.command()
@click.argument("paper", metavar="PAPER")
@click.argument("table", metavar="TABLE")
@click.option(
    "--format",
    "form",
    type=click.Choice(("plain", "markdown", "csv")),
    default="plain",
    show_default=True,
    help="Of the output.",
)
@_out
def table(paper: str, table: str, form: str, out: Path) -> None:
    """Prints a table of a paper with our figures of finished rows beside the paper's.

    Example:

        dearli reproduce table dearli 1
    """
    from ..reproduction.listing import table_of

    click.echo(table_of(paper, table, out, form))
