"""Errors that are meant for users: each message names what is wrong, where, and what to do about it."""

from __future__ import annotations

from typing import Any


class DearliError(Exception):
    """Base of all errors a user can cause and mend; the command line prints them without a stack trace."""


class ConfigError(DearliError):
    """A configuration key is unknown, has an impossible value, or contradicts another."""


class DatasetError(DearliError):
    """A data set is missing, incomplete or inconsistent."""


class UnreadableImageError(DatasetError):
    """One image file is missing, damaged or of a kind that cannot be used."""


class StorageError(DatasetError):
    """A place of files, such as a host behind a URL, does not answer; another file there would fare no better."""


class WeightsError(DearliError):
    """Weights cannot be had, or do not fit the model."""


class RequirementsError(DearliError):
    """Data, weights or settings that several stages of a row need are missing; the message lists all."""


class ClusterError(DearliError):
    """A Ray cluster cannot be reached, does not fit, or has lost its workers."""


class TrainingError(DearliError):
    """Training cannot go on (losses that are not finite)."""


def first_few(items: list[Any], limit: int = 3) -> str:
    """'a, b, c and 4 more': how every report here shortens a list of offenders."""
    shown = ", ".join(str(item) for item in items[:limit])
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")
