"""Curves and matrices as SVG that stands inside an HTML page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from .groups import Group, mean_series

_POINTS = 300  # of a line; more points are averaged
_COLUMNS = 3
_LONGEST = 24  # characters of a class on an axis
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.titlelocation": "left",
}


def curves(groups: Sequence[Group], names: Sequence[str], unit: str = "") -> str:
    """A panel for each scalar, a line for each group, with a band of one standard deviation where it has several seeds.

    Args:
        groups: colour, name and runs.
        names: of scalars; those that no run has are left out.
        unit: of the values, below the title of each panel.

    Returns:
        SVG, "" where there is nothing to draw.
    """
    lines = {name: [(g, line) for g in groups if (line := mean_series(g, name)) is not None] for name in names}
    lines = {name: found for name, found in lines.items() if found}
    if not lines:
        return ""
    rows = -(-len(lines) // _COLUMNS)
    last = max(line[0][-1] for found in lines.values() for _, line in found)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10.5, 2.3 * rows + 0.1), layout="constrained")
        grid = figure.subplots(rows, _COLUMNS, squeeze=False)
        for axes, (name, found) in zip(grid.flat, lines.items(), strict=False):
            for group, line in found:
                steps, mean, deviation = _thinned(*line)
                marker = "o" if len(steps) <= 30 else ""
                axes.plot(steps, mean, color=group.color, linewidth=1.4, marker=marker, markersize=3)
                if deviation.any():
                    low, high = mean - deviation, mean + deviation
                    axes.fill_between(steps, low, high, color=group.color, alpha=0.2, linewidth=0)
            axes.set_title(name)
            axes.set_xlabel("step", loc="right", labelpad=1)
            axes.set_ylabel(unit)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.set_xlim(0, 1.02 * last)
        for axes in grid.flat[len(lines) :]:
            axes.axis("off")
        return _svg(figure, " ".join(lines))


def heat_map(matrix: np.ndarray, names: Sequence[str], salt: str) -> str:
    """A confusion matrix: the share of the pixels of each true class (row) that was found as each class (column).

    Args:
        matrix: (K, K) counts.
        names: K class names.
        salt: tells the parts of this picture from those of others on the page.
    """
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    labels = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    side = 1.2 + 0.26 * len(names) + 0.08 * max(map(len, labels))  # inches
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side + 0.9, side), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        axes.set_xticks(range(len(names)), labels, rotation=90)
        axes.set_yticks(range(len(names)), labels)
        axes.set_xlabel("found as")
        axes.set_ylabel("true class")
        if len(names) <= 20:
            for row, column in zip(*np.nonzero(shares >= 1), strict=True):
                share = shares[row, column]
                color = "white" if share > 55 else "black"
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=color, fontsize=6.5)
        figure.colorbar(image, ax=axes, shrink=0.6, label="% of the true class")
        return _svg(figure, salt)


def _thinned(*line: np.ndarray) -> list[np.ndarray]:
    if len(line[0]) <= _POINTS:
        return list(line)
    return [np.array([part.mean() for part in np.array_split(values, _POINTS)]) for values in line]


def _svg(figure: Figure, salt: str) -> str:
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(
        r'^<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1">', text
    )
