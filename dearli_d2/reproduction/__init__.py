"""Rows of the papers' tables as data, and the commands that reproduce them."""

from .papers import Experiment, Figure, Paper, Row, Stage, experiments, find, papers

__all__ = ["Experiment", "Figure", "Paper", "Row", "Stage", "experiments", "find", "papers"]
