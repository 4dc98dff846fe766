"""`python -m benchmarks`: run the scenarios, print tables, write JSON and a chart."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from outbox.codec import to_json
from outbox.testing import PostgresServer

from . import (
    chart,
    coroutines,
    disturbance,
    drain,
    end_to_end,
    enqueue,
    manager,
    measure,
    report,
    restart,
    scale,
    steady,
    threads,
    transaction,
)
from .measure import FULL, HUGE, QUICK, NotTheSameWork, Result, Setting

SCENARIOS: dict[str, Callable[[Setting], Result]] = {
    "manager": manager.run,
    "enqueue": enqueue.run,
    "transaction": transaction.run,
    "threads": threads.run,
    "async": coroutines.run,
    "restart": restart.run,
    "drain": drain.run,
    "disturbance": disturbance.run,
    "end_to_end": end_to_end.run,
    "scale": scale.run,
    "steady": steady.run,
}


# As the server has it by itself; the tests' is smaller.
_SERVER = {"shared_buffers": "128MB"}


@click.command()
@click.option("--quick", is_flag=True, help="Small sizes, under two minutes; judges nothing.")
@click.option("--huge", is_flag=True, help="Also a backlog of ten million entries: much longer, 7 GiB of disk.")
@click.option("--scenario", "names", multiple=True, type=click.Choice(list(SCENARIOS)), help="Only this; repeatable.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/bench"),
    show_default=True,
    help="Where stores are made and results written: on the disk to be measured.",
)
@click.option(
    "--report",
    "document",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Also replace the measured block of this document, and the chart beside it.",
)
def main(quick: bool, huge: bool, names: tuple[str, ...], directory: Path, document: Path | None) -> None:
    """Measure the outbox beside other ways to do the same work.

    Exit code 0: every contender did the same work, whether or not a target was met.  1: one did not.
    """
    sizes = QUICK if quick else HUGE if huge else FULL
    plain = Console()
    console = plain if plain.is_terminal else Console(width=120)
    directory.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    with (
        tempfile.TemporaryDirectory(prefix="run-", dir=directory) as place,
        # The server's files lie where the system keeps temporary ones: put TMPDIR on the disk to be measured.
        PostgresServer(options=_SERVER) as server,
        console.status("") as status,
    ):
        run = report.describe(sizes, directory, server.url())
        for name in names or SCENARIOS:
            setting = Setting(
                sizes,
                Path(place),
                server.url(),
                lambda said, name=name: status.update(f"{name}: {said}"),  # type: ignore[misc]
            )
            begin = measure.clock()
            try:
                result = SCENARIOS[name](setting)
            except NotTheSameWork as exc:
                console.print(f"[red]{name}: a contender did not do the same work: {exc}", highlight=False)
                sys.exit(1)
            result.seconds = measure.clock() - begin
            results.append(result)
            report.show(console, result)
    (directory / "results.json").write_bytes(to_json({**run, "results": [one.as_dict() for one in results]}))
    written = [str(directory / "results.json")]
    picture = directory / "performance.png" if document is None else document.with_name("performance.png")
    try:
        chart.draw(results, picture)
        written.append(str(picture))
    except ImportError as exc:
        console.print(f"no chart: {exc} (pip install 'lmdb-outbox[bench]')", highlight=False)
    if document is not None:
        report.replace_block(document, report.markdown(run, results))
        written.append(str(document))
    console.print("written: " + ", ".join(written), highlight=False)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
