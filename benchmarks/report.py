"""How results are shown: a table, JSON, the block of docs/explanation/performance.md that a run replaces."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from outbox.store.filesystem import filesystem_of

from .measure import Goal, Line, Result, Sizes
from .workload import execute

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
_WIDTH = 120
_HEADERS = ("contender", "n", "median", "p99", "per second", "ratio", "flushes", "")


def describe(sizes: Sizes, directory: Path, url: str) -> dict[str, Any]:
    """What a reader must know to compare this run with another one."""
    return {
        "run": sizes.name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "file_system": filesystem_of(directory) or "unknown",
        "python": platform.python_version(),
        "postgresql": execute(url, "SHOW server_version")[0][0],
        "packages": {name: version(name) for name in ("lmdb", "orjson", "psycopg2-binary", "SQLAlchemy")},
    }


def show(console: Console, result: Result) -> None:
    """Print one scenario."""
    table = Table(title=f"{result.scenario}: {result.title}", title_justify="left", title_style="bold")
    for header in _HEADERS:
        table.add_column(header, justify="left" if header in ("contender", "") else "right")
    for cells in _cells(result.lines):
        table.add_row(*cells)
    if result.lines:
        console.print(table)
    else:
        console.print(f"[bold]{result.scenario}: {result.title}")
    if result.reference:
        console.print(f"  ratio: to {result.reference}")
    for goal in result.goals:
        console.print(f"  {_verdict(goal)}", highlight=False)
    for note in result.notes:
        console.print(f"  {note}", highlight=False)
    console.print(f"  {result.seconds:.0f} s\n", highlight=False)


def markdown(run: dict[str, Any], results: Sequence[Result]) -> str:
    """The measured block of docs/explanation/performance.md: answers first, then the comparisons."""
    packages = ", ".join(f"{name} {number}" for name, number in run["packages"].items())
    where = (
        f"A {run['run']} run of {run['at'][:10]}: {run['system']}, {run['cpus']} CPUs, load {run['load']} at first, "
        f"{run['file_system']}, Python {run['python']}, PostgreSQL {run['postgresql']}, {packages}."
    )
    text = [
        *textwrap.wrap(where, _WIDTH),
        "",
        *_answers(results),
        "![The scenarios of this run](performance.png)",
    ]
    for result in results:
        if not result.tabled:
            continue
        text += ["", f"### {result.title}", ""]
        text += [*_markdown_table(result.lines), ""]
        notes = [f"Ratio: to {result.reference}."] if result.reference else []
        text += [f"- {note}" for note in [*notes, *result.notes]]
    return "\n".join(text)


def _answers(results: Sequence[Result]) -> list[str]:
    """What a reader may rely on, in a table of few lines, and how many of all targets were met."""
    goals = [goal for result in results for goal in result.goals]
    asked = [goal for goal in goals if goal.question]
    if not asked:
        return []
    rows = [f"| {goal.question} | {goal.answer.format(value=goal.value)} | {_target(goal)} |" for goal in asked]
    judged = [goal for goal in goals if goal.judged]
    met = f"{sum(goal.met for goal in judged)} of {len(judged)} targets were met: `make bench` prints each."
    return ["| What you may rely on | In this run | Target |", "|---|---|---|", *rows, "", met, ""]


def _markdown_table(lines: Iterable[Line]) -> list[str]:
    """The lines as a table, without the columns that are empty in all of them."""
    columns = [column for column in zip(_HEADERS, *_cells(lines), strict=True) if any(column[1:])]
    rules = ["---" if header in ("contender", "") else "---:" for header, *_ in columns]
    header, *rows = [f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True)]
    return [header, f"|{'|'.join(rules)}|", *rows]


def replace_block(document: Path, block: str) -> None:
    """Put `block` between the markers of a document.  Raises ValueError where there are none."""
    text = document.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has no {BEGIN} ... {END}")
    document.write_text(f"{before}{BEGIN}\n{block}\n{END}{after}", encoding="utf-8")


def _cells(lines: Iterable[Line]) -> Iterable[tuple[str, ...]]:
    for one in lines:
        yield (
            one.contender,
            f"{one.count:,}",
            _duration(one.median_us),
            _duration(one.p99_us),
            "" if one.per_second is None else f"{one.per_second:,.0f}",
            "" if one.ratio is None else f"{one.ratio:.3g}",
            "" if one.flushes is None else f"{one.flushes:.3g}",
            one.note,
        )


def _duration(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.3g} µs"
    return f"{microseconds / 1000:.3g} ms"


def _verdict(goal: Goal) -> str:
    return f"{goal.text}: {goal.value:.3g} (target: {_target(goal)})"


def _target(goal: Goal) -> str:
    said = "met" if goal.met else "missed"
    bound = f"{'at most' if goal.at_most else 'at least'} {goal.limit:g}"
    return f"{bound}, {said if goal.judged else 'not judged at these sizes'}"
