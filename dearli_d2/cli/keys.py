"""`dearli keys`."""

from __future__ import annotations

import click

from .base import command


@command()
@click.argument("words", nargs=-1, metavar="[WORD]...")
def keys(words: tuple[str, ...]) -> None:
    """Lists keys of the config with default, meaning and accepted values.

    With words it lists the keys that have all of them in name or meaning.

    Examples:

        dearli keys
        dearli keys teacher
        dearli keys MODEL.ENSEMBLE
    """
    from ..config.schema import entries
    from ..errors import ConfigError

    found = [
        entry
        for entry in entries()
        if all(word.lower() in f"{entry.name} {entry.explanation}".lower() for word in words)
    ]
    if not found:
        raise ConfigError(f"no key has {' and '.join(words)} in its name or meaning; dearli keys lists all")
    for entry in found:
        click.echo(f"{entry.name} {entry.default!r}")
        click.echo(f"    {entry.explanation}")
        click.echo(f"    Accepts {entry.rule.allowed}.")
