"""The chart of a run: one panel for each scenario, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .measure import Result

_COLUMNS = 2
_OURS, _OTHERS = "#1f77b4", "#b8bec7"


def draw(results: Sequence[Result], path: Path) -> None:
    """Write a PNG.  Raises ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(results) // _COLUMNS)
    figure = Figure(figsize=(7.0 * _COLUMNS, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for index, result in enumerate(results):
        axes = figure.add_subplot(rows, _COLUMNS, index + 1)
        axes.set_title(result.title, fontsize=9, loc="left")
        if result.curves:
            _curves(axes, result)
        else:
            _bars(axes, result)
    figure.savefig(path, dpi=110)


def _bars(axes: Any, result: Result) -> None:
    by_rate = any(line.per_second is not None for line in result.lines)
    names = [line.contender for line in result.lines]
    values = [(line.per_second or 0.0) if by_rate else line.median_us for line in result.lines]
    colours = [_OURS if name.startswith("outbox") else _OTHERS for name in names]
    axes.barh(names, values, color=colours)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set_xlabel("per second (more is better)" if by_rate else "median, microseconds (less is better)", fontsize=8)
    for place, (value, line) in enumerate(zip(values, result.lines, strict=True)):
        label = f" {value:,.0f}" + ("" if by_rate else f", p99 {line.p99_us:,.0f}")
        axes.text(value, place, label, va="center", fontsize=7)
    axes.set_xlim(0, 1.3 * max(values))


def _curves(axes: Any, result: Result) -> None:
    for name, points in result.curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    across, up = result.axes
    if across == "pending entries":
        axes.set_xscale("log")
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7)
