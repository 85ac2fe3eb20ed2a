"""What all commands share: how help and errors look, and the options that name a config.

This module and those of the commands import nothing but click at their top. What a command does is imported when it runs, so
that help and completion are quick.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from ..files import beside_package

OVERRIDES = """KEY VALUE: keys of the config with their new values, in pairs. A list or a tuple is quoted:
  SOLVER.MAX_ITER 1000 OUTPUT_DIR output/mine DATASETS.TEST "('miniworld_val',)"
`dearli keys` lists all keys with their meaning."""
POSITIVE = click.IntRange(min=1)
FILE_OR_FOLDER = click.Path(path_type=Path)


class _Documented(click.Command):
    """A command or a group whose help is its docstring as it is written."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.context_settings = {"help_option_names": ["-h", "--help"], "max_content_width": 120}

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The docstring, line by line."""
        _write(formatter, self.help)

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence of the docstring."""
        return first_sentence(self.help)


class Command(_Documented):
    """A command whose help is its docstring as it is written, and whose errors are one line.

    Args:
        one_of: names of parameters of which exactly one is given.
    """

    def __init__(self, *args: Any, one_of: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.one_of = one_of
        self.takes_overrides = any(isinstance(p, Overrides) for p in self.params)
        # a value may begin with a dash, such as -1
        self.ignore_unknown_options = self.takes_overrides

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Adds the condition `one_of`, and refuses an option with an empty value, as a failed `$(...)` of a shell leaves it."""
        taking = {name for p in self.params if isinstance(p, click.Option) and not p.is_flag for name in p.opts}
        empty = [name for name, value in pairwise(args) if name in taking and not value]
        if empty and not ctx.resilient_parsing:
            raise click.UsageError(f"{empty[0]} is empty", ctx)
        rest = super().parse_args(ctx, args)
        given = [name for name in self.one_of if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if self.one_of and len(given) != 1 and not ctx.resilient_parsing:
            options = " or ".join(f"--{name.replace('_', '-')}" for name in self.one_of)
            raise click.UsageError(f"give {options}" + (", not both" if given else ""), ctx)
        return rest

    def invoke(self, ctx: click.Context) -> int:
        """Runs the command; returns its exit status. Wrong words that the command itself finds are told as all others."""
        from ..reporting import USER_ERROR, report_errors

        wrong: list[click.ClickException] = []

        def work() -> int:
            try:
                return super(Command, self).invoke(ctx) or 0
            except click.ClickException as error:
                wrong.append(error)
                return USER_ERROR

        status = report_errors(work)
        if wrong:
            raise wrong[0]
        return status

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Explains KEY VALUE, where the command takes it."""
        if self.takes_overrides:
            _write(formatter, OVERRIDES)


class Group(_Documented, click.Group):
    """Commands in the order they were added. The nearest one is named for one that does not exist."""

    command_class = Command
    group_class = type

    def group_of(self, name: str) -> Group:
        """The group of that name below this one, to add a command to it."""
        found = self.commands[name]
        assert isinstance(found, Group)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command of the first argument."""
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, known, 1)
            raise click.UsageError(
                f"there is no command {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""), ctx
            )
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of definition, not of the alphabet."""
        return list(self.commands)


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring, without the full stop."""
    paragraph = " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
    return re.split(r"[.:](?= |$)", paragraph, maxsplit=1)[0]


def command(name: str | None = None, **settings: Any) -> Callable[[Callable], Command]:
    """Makes a command of a function; its docstring is the help, first a sentence, at the end examples."""
    return click.command(name, cls=Command, **settings)


def run(command: click.Command, argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Runs a command line.

    Args:
        argv: None = that of the process.
        program: as help and errors call it.

    Returns:
        The exit status: 0, or 2 for what the user can mend, 130 after Ctrl-C, 1 for an error of the program.
    """
    try:
        status = command.main(None if argv is None else list(argv), program, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        advice = f" ({error.ctx.command_path} --help explains it)" if error.ctx else ""
        click.echo(f"error: {_message(error)}{advice}", err=True)
        return 2
    except click.Abort:
        click.echo("error: interrupted", err=True)
        return 130
    return status or 0


def config_file(command: Callable) -> Callable:
    """The option `--config-file`."""
    text = "YAML file of the experiment. The folder configs/ holds them, and is found from any folder."
    option = click.option("--config-file", metavar="FILE", required=True, shell_complete=_complete_config, help=text)
    return option(command)


class Overrides(click.Argument):
    """All words that are no options. They may stand before, between and after options."""

    def __init__(self, names: Sequence[str], metavar: str, **settings: Any) -> None:
        super().__init__(names, nargs=-1, metavar=metavar, callback=_no_options, **settings)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Keys; behind a key the values that it accepts, where they can be listed. Else files."""
        from ..config.schema import schema
        from ..config.values import Choice, Switch

        rules = schema()
        words = ctx.params.get(str(self.name)) or ("",)
        rule = rules.get(words[-1])
        if isinstance(rule, Choice):
            found = [str(option) for option in rule.options]
        else:
            found = ["True", "False"] if isinstance(rule, Switch) else sorted(rules) if rule is None else []
        found = [text for text in found if text.startswith(incomplete)]
        return [CompletionItem(text) for text in found] or [CompletionItem(incomplete, type="file")]


def overrides(command: Callable) -> Callable:
    """The argument `overrides`: KEY VALUE pairs."""
    return click.argument("overrides", cls=Overrides, metavar="[KEY VALUE]...")(command)


def shared_out(command: Callable) -> Callable:
    """The options `--shard` and `--device` of what several processes may do together."""
    shard = "This process's share of the images, from 0/N to N-1/N; default: as torchrun says."
    for option in (
        click.option("--device", metavar="NAME", help="cuda or cpu; default: the GPU of this process, else cpu."),
        click.option("--shard", metavar="I/N", help=shard),
    ):
        command = option(command)
    return command


def on_ray(command: Callable) -> Callable:
    """The options of what a Ray cluster may do, see `ray_engine.chosen_cluster`."""
    for option in (
        click.option("--ray-actors", type=POSITIVE, metavar="N", help="Models with --engine ray; default: one for each GPU of the cluster, else for each 4 CPUs."),
        click.option("--ray-address", metavar="HOST:PORT", help="A running Ray cluster; default: one is started on this machine."),
        click.option("--engine", type=click.Choice(("process", "ray")), default="process", show_default=True, help="Who works: this process, or a Ray cluster (extra `ray`)."),
    ):  # fmt: skip
        command = option(command)
    return command


class PictureFile(click.ParamType):
    """A file to write, with the suffix of a picture."""

    name = "picture"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Fails for another suffix."""
        path = Path(value)
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            self.fail(f"{value} is no name of a picture; name it .png, .jpg or .webp", param, ctx)
        return path


def _no_options(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """Refuses unknown options, which click has left among the values since a value may begin with a dash."""
    for word in words:
        name = word.partition("=")[0]
        if re.match(r"--?[a-zA-Z]", name) and not ctx.resilient_parsing:
            known = [option for p in ctx.command.params for option in p.opts if option.startswith("-")]
            raise click.NoSuchOption(name, possibilities=difflib.get_close_matches(name, known), ctx=ctx)
    return words


def _complete_config(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files of the working folder; without `configs/` there, those of the package."""
    root = beside_package("configs")
    if Path("configs").is_dir() or not "configs/".startswith(incomplete[:8]):
        return [CompletionItem(incomplete, type="file")]
    names = (f"configs/{path.relative_to(root).as_posix()}" for path in root.rglob("*.yaml"))
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def _write(formatter: click.HelpFormatter, text: str | None) -> None:
    formatter.write_paragraph()
    formatter.write(inspect.cleandoc(text or "") + "\n")


def _message(error: click.UsageError) -> str:
    if isinstance(error, click.MissingParameter) and error.param is not None:
        if isinstance(error.param, click.Option) or error.ctx is None:
            return f"{error.param.opts[0]} is missing"
        return f"{error.param.make_metavar(error.ctx)} is missing"
    return error.format_message().strip().rstrip(".")
