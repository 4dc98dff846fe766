"""Runs an engine process through outages and restarts at given bars, and reads what it leaves."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outbox.testing import PostgresServer

from .compare import Run
from .journal import lines
from .kinds import KINDS

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """At which bars PostgreSQL is killed and started, and the engine is killed and started again at once."""

    bars: int = 400
    kill_postgres: tuple[int, ...] = ()
    start_postgres: tuple[int, ...] = ()
    kill_engine: tuple[int, ...] = ()

    @property
    def pauses(self) -> list[int]:
        return sorted({*self.kill_postgres, *self.start_postgres, *self.kill_engine})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    run: Run
    database: str
    # What the outbox says of itself at the end; empty after a plain run.
    status: dict[str, Any]
    # Why the engine did not trade to the last bar, or None.
    failed: str | None = None


class EngineFailed(AssertionError):
    """The engine stopped by itself, or its process died."""


def trade(kind: str, mode: str, schedule: Schedule, server: PostgresServer, folder: Path) -> Outcome:
    """Trade all bars in the given mode; a plain run has the restarts of the schedule, but no outage."""
    folder.mkdir(parents=True, exist_ok=True)
    database = f"{kind}_{uuid.uuid4().hex}"
    order: dict[str, Any] = {
        "kind": kind,
        "mode": mode,
        "url": server.create_database(database),
        "dir": str(folder / "outbox"),
        "journal": str(folder / "journal"),
        "bars": schedule.bars,
    }
    status: dict[str, Any] = {}
    failed: str | None = None
    try:
        status = _through(schedule, order, server, folder)
    except EngineFailed as error:
        failed = str(error)
        server.start()
    run = Run(KINDS[kind].shape, lines(folder / "journal"), order["url"])
    return Outcome(run=run, database=database, status=status, failed=failed)


def _through(schedule: Schedule, order: dict[str, Any], server: PostgresServer, folder: Path) -> dict[str, Any]:
    first = 0
    for restart in [*schedule.kill_engine, None]:
        pauses = [bar for bar in schedule.pauses if bar > first and (restart is None or bar <= restart)]
        with _process({**order, "first": first, "pauses": pauses}, folder) as process:
            for bar in pauses:
                _expect(process, folder, at=bar)
                if order["mode"] != "plain":
                    _disturb(server, schedule, bar)
                if bar != restart:
                    _go_on(process)
            if restart is None:
                return _expect(process, folder, done=True)
            first = restart
    raise AssertionError("the last process returns")


def _disturb(server: PostgresServer, schedule: Schedule, bar: int) -> None:
    if bar in schedule.kill_postgres:
        server.kill()
    if bar in schedule.start_postgres:
        server.start()


@contextlib.contextmanager
def _process(order: dict[str, Any], folder: Path) -> Iterator[subprocess.Popen[str]]:
    module = "process" if order["mode"] == "plain" else "durable"
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"tests.integration.foreign.{module}", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def _go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def _expect(process: subprocess.Popen[str], folder: Path, **wanted: Any) -> dict[str, Any]:
    """Read what the process says until it says `wanted`; all of it, merged."""
    assert process.stdout is not None
    said: dict[str, Any] = {}
    for line in process.stdout:
        said |= json.loads(line)
        if "failed" in said:
            break
        if wanted.items() <= said.items():
            return said
    tail = (folder / "log").read_text()[-3000:]
    raise EngineFailed(f"expected {wanted}, the engine said {said}; its log ends:\n{tail}")
