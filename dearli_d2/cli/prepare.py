"""`dearli prepare`: the scripts datasets/prepare_*.py as commands."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable

import click

from ..files import beside_package
from .base import Group, first_sentence

_PREFIX = "prepare_"


class Scripts(Group):
    """A command for each script, called `main` there. A script is imported when its command is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the scripts, without prefix and suffix."""
        return sorted(path.stem.removeprefix(_PREFIX) for path in beside_package("datasets").glob(f"{_PREFIX}*.py"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command `main` of a script."""
        if name not in self.list_commands(ctx):
            return None
        folder = str(beside_package("datasets"))
        if folder not in sys.path:  # worker processes find the functions of the script there
            sys.path.append(folder)
        found = importlib.import_module(f"{_PREFIX}{name}").main
        found.name = name
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The first sentences of the scripts' docstrings, which are read without running them."""
        rows = []
        for name in self.list_commands(ctx):
            path = beside_package("datasets") / f"{_PREFIX}{name}.py"
            rows.append((name, first_sentence(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list:
        """Names only: the scripts are not imported for their help."""
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name) for name in self.list_commands(ctx) if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(cls=Scripts)
def prepare() -> None:
    """Converts downloaded data sets into the files that training reads.

    All data lie below the folder that the environment variable DETECTRON2_DATASETS names; default: ./datasets. Each command's
    --help lists the official downloads it reads, with their sizes and licences. Commands refuse a download that is not complete,
    show progress, and resume when interrupted.

    Examples:

        dearli prepare ade20k --workers 8
        dearli prepare coco
        dearli prepare captions cityscapes_train@1_8 --from-labels
    """


def workers(function: Callable) -> Callable:
    """The option `--workers`."""
    text = "Processes that convert images."
    return click.option("--workers", type=int, default=4, metavar="N", show_default=True, help=text)(function)


def incomplete(function: Callable) -> Callable:
    """The option `--incomplete`, the one way to prepare a download that is not the whole official release."""
    text = "Accept other images than those of the official release, with a warning. DEARLI_INCOMPLETE=1 does the same."
    option = click.option("--incomplete", is_flag=True, envvar="DEARLI_INCOMPLETE", help=text)
    return option(function)


def splits(function: Callable) -> Callable:
    """The argument `splits`. The word `--splits` before it is left out of the help: it was needed in the first version."""
    names = click.Choice(("train", "val"))
    function = click.argument("splits", nargs=-1, type=names, default=("train", "val"), metavar="[train] [val]")(
        function
    )
    return click.option("--splits", "_", is_flag=True, expose_value=False, hidden=True)(function)
