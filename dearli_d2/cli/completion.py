"""`dearli completion`."""

from __future__ import annotations

import click

from .base import command


@command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Prints a script with which the Tab key completes commands, options, config files and keys of the config.

    Add the line of your shell to its start-up file: ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish. Bash must be 4.4 or
    newer.

    Examples:

        eval "$(dearli completion bash)"
        eval "$(dearli completion zsh)"
        dearli completion fish | source
    """
    from click.shell_completion import get_completion_class

    from . import dearli

    script = get_completion_class(shell)
    assert script is not None
    print(script(dearli, {}, "dearli", "_DEARLI_COMPLETE").source())
