"""`atb outbox demo`: trade through an outage, kill everything, and prove that nothing was lost or doubled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import click
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from sqlalchemy import create_engine

from outbox import Outbox, OutboxError, OutboxStatus, PostgresTarget, Relay
from outbox.integrations.durable import TRADING_OPERATIONS, bind
from outbox.integrations.paper import DatabaseManager
from outbox.integrations.paper.check import Report, compare, read_record, summary
from outbox.testing import PostgresServer

_LOOK_S = 0.25
_PLAIN_EVERY_S = 2.0
_EVENTS_SHOWN = 12


@dataclass(frozen=True)
class Plan:
    """How long each act lasts, in bars of the price series; `pace` is bars per second."""

    before: int
    outage: int
    # Still in the outage, by an engine that was started in it.
    resumed: int
    after: int
    second_outage: int
    total: int
    pace: float


_FULL = Plan(before=500, outage=250, resumed=250, after=300, second_outage=300, total=2000, pace=60)
_FAST = Plan(before=60, outage=30, resumed=30, after=30, second_outage=30, total=220, pace=100)


@click.command()
@click.option("--fast", is_flag=True, help="A tenth of the bars, for tests.")
@click.option("--keep", is_flag=True, help="Keep the store and the record, and say where they are.")
def demo(fast: bool, keep: bool) -> None:
    """Trade through two PostgreSQL outages and a killed engine, then check every row.

    Starts a private PostgreSQL and the paper engine on real prices, kills PostgreSQL in the middle of trading, lets the
    engine trade on, kills the engine too, starts it again in the outage, and compares PostgreSQL with what the engine
    was told was durable, ids included.
    """
    folder = Path(tempfile.mkdtemp(prefix="outbox-demo-"))
    view = View(Console())
    try:
        with _server() as postgres, view:
            outages, report = Demo(folder, postgres, view, _FAST if fast else _FULL).run()
    finally:
        if keep:
            click.echo(f"store and record are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for finding in report.findings[:20]:
        click.echo(f"  {finding}")
    click.echo(
        f"demo: acknowledged={report.acknowledged} applied={report.applied} "
        f"lost={report.lost} duplicated={report.duplicated} outages={outages}"
    )
    sys.exit(0 if report.ok and report.acknowledged else 1)


class View:
    """What happens, live on a terminal and as plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console, self._live = console, None if not console.is_terminal else Live(console=console, transient=False)
        self._started = time.monotonic()
        self._events: list[str] = []
        self._line = ""
        self._plain_at = 0.0

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, text: str) -> None:
        """Something happened."""
        line = f"{time.monotonic() - self._started:5.1f} s  {text}"
        self._events.append(line)
        if self._live is None:
            click.echo(line)
        self._draw()

    def figures(self, bar: int, total: int, status: OutboxStatus | None, engine: bool, postgres: bool) -> None:
        """How things stand."""
        pending = completed = 0
        breaker = "-"
        if status is not None:
            pending, completed, breaker = status.pending, status.completed, status.breaker
        up = {True: "up", False: "DOWN"}
        self._line = (
            f"bar {bar}/{total}   engine {up[engine]}   PostgreSQL {up[postgres]}   pending {pending}   "
            f"applied {completed}   breaker {breaker}"
        )
        now = time.monotonic()
        if self._live is None and now >= self._plain_at:
            self._plain_at = now + _PLAIN_EVERY_S
            click.echo(f"{now - self._started:5.1f} s    {self._line}")
        self._draw()

    def _draw(self) -> None:
        if self._live is None:
            return
        table = Table.grid()
        for line in self._events[-_EVENTS_SHOWN:]:
            table.add_row(Text(line))
        self._live.update(Group(Panel(Text(self._line), title="lmdb-outbox demo"), table))


class Demo:
    """One run.  `folder` receives the store and the record."""

    def __init__(self, folder: Path, postgres: PostgresServer, view: View, plan: Plan) -> None:
        self._folder, self._postgres, self._view, self._plan = folder, postgres, view, plan
        self._store, self._record = folder / "outbox", folder / "acknowledged.jsonl"
        self._engine: subprocess.Popen[bytes] | None = None
        self._outages = 0

    def run(self) -> tuple[int, Report]:
        """Play all acts; returns the number of outages and the comparison."""
        plan, view = self._plan, self._view
        acts = accumulate((plan.before, plan.outage, plan.resumed, plan.after, plan.second_outage))
        view.event("PostgreSQL is up; the paper engine starts trading real prices")
        with self._stopping_engine():
            self._start_engine()
            self._trade_until(next(acts))
            self._kill_postgres("in the middle of trading")
            self._trade_until(next(acts))
            waiting = self._pending()
            self._kill_engine()
            view.event(f"the engine was killed with SIGKILL while PostgreSQL is down; {waiting} entries wait on disk")
            self._start_engine()
            self._trade_until(next(acts))
            view.event(
                f"without PostgreSQL it resumed its session and traded on; {self._pending()} entries wait on disk"
            )
            self._start_postgres()
            self._trade_until(next(acts))
            self._kill_postgres("again, the engine lives on")
            self._trade_until(next(acts))
            self._start_postgres()
            self._trade_until(plan.total)
            self._wait_for_engine()
        self._drain()
        view.event(f"comparing PostgreSQL with the engine's own record: {summary(read_record(self._record))}")
        engine = create_engine(_sqlalchemy_url(self._postgres.url()))
        try:
            return self._outages, compare(read_record(self._record), engine)
        finally:
            engine.dispose()

    def _start_engine(self) -> None:
        plan = self._plan
        command = [sys.executable, "-m", "outbox.integrations.paper.process", "--record", str(self._record)]
        command += ["--bars", str(plan.total), "--pace", str(plan.pace), "--finish"]
        settings = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
        settings |= {"OUTBOX_DIR": str(self._store), "DATABASE_URL": self._postgres.url()}
        log = (self._folder / "engine.log").open("ab")
        with log:
            self._engine = subprocess.Popen(command, env=settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._view.event("the engine was started")

    def _kill_engine(self) -> None:
        assert self._engine is not None
        self._engine.send_signal(signal.SIGKILL)
        self._engine.wait()
        self._look()

    def _wait_for_engine(self) -> None:
        assert self._engine is not None
        self._until(lambda: self._engine is not None and self._engine.poll() is not None)
        self._check_engine(finished=True)
        self._view.event("the engine closed its positions and ended its session")

    def _kill_postgres(self, when: str) -> None:
        self._postgres.kill()
        self._outages += 1
        self._view.event(f"PostgreSQL was killed with SIGKILL {when}")

    def _start_postgres(self) -> None:
        self._postgres.start()
        self._view.event("PostgreSQL is back")

    def _trade_until(self, bar: int) -> None:
        self._until(lambda: self._bar() >= bar)

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._check_engine(finished=False)
            self._look()
            time.sleep(_LOOK_S)

    def _check_engine(self, *, finished: bool) -> None:
        """Raise when the engine ended by itself though it should not have, or badly."""
        code = None if self._engine is None else self._engine.poll()
        if code is None or (code == 0 and (finished or self._bar() >= self._plan.total - 1)):
            return
        tail = (self._folder / "engine.log").read_text(errors="replace").strip()[-2000:]
        raise click.ClickException(f"the engine ended with exit code {code}: {tail}")

    def _bar(self) -> int:
        """The last bar that the engine began."""
        if not self._record.exists():
            return 0
        return max(
            (int(record["index"]) + 1 for record in read_record(self._record) if record["kind"] == "bar"), default=0
        )

    def _status(self) -> OutboxStatus | None:
        try:
            with Outbox.attach(self._store) as box:
                return box.status()
        except OutboxError:
            return None  # not created yet, or just being opened

    def _pending(self) -> int:
        status = self._status()
        return 0 if status is None else status.pending

    def _look(self) -> None:
        alive = self._engine is not None and self._engine.poll() is None
        status = self._status()
        self._view.figures(self._bar(), self._plan.total, status, alive, self._postgres.is_running)
        if status is not None and status.needs_operator:
            raise click.ClickException(f"the outbox needs an operator: {'; '.join(status.needs_operator)}")

    def _drain(self) -> None:
        url = self._postgres.url()
        manager = DatabaseManager(url)
        declared = bind(TRADING_OPERATIONS, lambda: manager)
        with Outbox.attach(self._store, operations=declared) as box:
            if not Relay(box, PostgresTarget(url, declared)).drain(timeout=60):
                raise click.ClickException(f"the outbox was not drained within 60 s: {box.status()}")
            status = box.status()
        manager.close()
        self._view.event(f"drained: {status.completed} entries applied, {status.dead_letters} dead letters")
        self._look()

    @contextmanager
    def _stopping_engine(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._engine is not None and self._engine.poll() is None:
                self._engine.kill()
                self._engine.wait()


@contextmanager
def _server() -> Iterator[PostgresServer]:
    """A private PostgreSQL; one sentence where it cannot be had."""
    try:
        server = PostgresServer()
        server.start()
    except RuntimeError as exc:
        raise click.ClickException(str(exc)) from exc
    with server:
        yield server


def _sqlalchemy_url(url: str) -> str:
    return "postgresql+psycopg2://" + url.partition("://")[2]
