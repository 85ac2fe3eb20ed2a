"""What the command lines share: help that is the module's docstring, and the options that name a config."""

from __future__ import annotations

import argparse
from pathlib import Path

OVERRIDES = """keys of the config with their new values, in pairs, after all other options:
SOLVER.MAX_ITER 1000 OUTPUT_DIR output/mine. A list or a tuple is quoted: DATASETS.TEST "('miniworld_val',)".
Every key with its default is in dearli_d2/config/build.py"""


def command_parser(program: str, documentation: str) -> argparse.ArgumentParser:
    """A parser whose `--help` shows a module's docstring: what the command does, then examples."""
    return argparse.ArgumentParser(
        prog=program, description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_config_file(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds `--config-file`."""
    text = "YAML file of the experiment; configs/ holds them, and is found from any folder"
    parser.add_argument("--config-file", metavar="FILE", required=required, help=text)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds `opts`: all that follows the other options."""
    parser.add_argument("opts", metavar="KEY VALUE", nargs=argparse.REMAINDER, default=[], help=OVERRIDES)


def picture_file(text: str) -> Path:
    """For options that name a picture to write: a file with the suffix of a format."""
    path = Path(text)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise argparse.ArgumentTypeError(f"{text} is no name of a picture; name it .png, .jpg or .webp")
    return path


def positive(text: str) -> int:
    """For options that count: a whole number from 1 on."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 on")
    return int(text)
