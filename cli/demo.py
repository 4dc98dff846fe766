"""`atb outbox demo`: trade through an outage, kill everything, and prove that nothing was lost or doubled."""

from __future__ import annotations

import math
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
from pathlib import Path

import click
from sqlalchemy import create_engine

from outbox import Outbox, OutboxError, OutboxStatus, PostgresTarget, Relay
from outbox.integrations.durable import TRADING_OPERATIONS, bind
from outbox.integrations.paper import DatabaseManager
from outbox.integrations.paper.check import Report, compare, read_record, summary
from outbox.testing import PostgresServer
from outbox.words import counted, entries

from ..clock import Patience
from .common import Interrupted, in_one_sentence, settled
from .demo_view import DemoFigures, View

_LOOK_S = 0.25
# The demo gives up when nothing has moved for so long: no bar, no delivery.
_STILL_S = 60.0
# What an act has besides that begins with the start of an engine.
_START_S = 2.0
# After so many bars the engine has made each kind of call.
_LEARNING = 150


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
    # How long it takes.
    seconds: int
    # An act ends after this share of the time that its bars need, though a slow machine has not traded them all.
    slack: float


_FULL = Plan(
    before=400, outage=200, resumed=200, after=300, second_outage=250, total=1600, pace=65, seconds=45, slack=1.1
)
_FAST = Plan(
    before=_LEARNING, outage=30, resumed=30, after=30, second_outage=30, total=310, pace=100, seconds=12, slack=math.inf
)


_INTRODUCTION = """\
A paper engine trades real prices into a PostgreSQL of its own, for about {seconds} seconds, longer on a busy machine.
PostgreSQL is killed twice, the engine once; what the engine writes meanwhile waits on disk.
At the end every row in PostgreSQL is compared with the engine's own record.
"""


@click.command()
@click.option("--fast", is_flag=True, help="A tenth of the bars, for tests.")
@click.option("--keep", is_flag=True, help="Keep the store and the record, and print where they are.")
@in_one_sentence
def demo(fast: bool, keep: bool) -> None:
    """Trade through outages and a kill, then check every row.

    Starts a private PostgreSQL and the paper engine on real prices.  Kills PostgreSQL twice while the engine trades,
    kills the engine and starts it again in the outage.  Then compares every row and id in PostgreSQL with the engine's
    record of acknowledged writes.
    """
    plan = _FAST if fast else _FULL
    for line in _INTRODUCTION.format(seconds=plan.seconds).splitlines():
        click.echo(line)
    # A closed terminal and `kill` must not leave an engine or a server behind either.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="outbox-demo-"))
    try:
        with _server() as postgres, View() as view:
            outages, report = Demo(folder, postgres, view, plan).run()
        good = report.ok and report.acknowledged > 0
        # The evidence of what went wrong.
        keep = keep or not good
    except KeyboardInterrupt as exc:
        raise Interrupted("the demo's engine and its PostgreSQL are stopped") from exc
    finally:
        if keep:
            click.echo(f"store and record are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for finding in report.findings[:20]:
        click.echo(f"  {finding}")
    click.secho(_verdict(report, outages), fg="green" if good else "red", bold=True)
    click.echo(
        f"demo: acknowledged={report.acknowledged} applied={report.applied} "
        f"lost={report.lost} duplicated={report.duplicated} outages={outages}"
    )
    sys.exit(0 if good else 1)


def _verdict(report: Report, outages: int) -> str:
    """The outcome in a sentence."""
    if not report.acknowledged:
        return "Nothing was shown: the engine got no write acknowledged."
    if not report.ok:
        return (
            f"{report.lost:,} of {report.acknowledged:,} acknowledged writes {_are(report.lost)} lost, "
            f"{report.duplicated:,} {_are(report.duplicated)} doubled, after {counted(outages, 'outage')}."
        )
    return (
        f"Nothing lost, nothing doubled: {report.applied:,} of {report.acknowledged:,} acknowledged writes are in "
        f"PostgreSQL, through {counted(outages, 'outage')}."
    )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


class Demo:
    """One run.  `folder` receives the store and the record."""

    def __init__(self, folder: Path, postgres: PostgresServer, view: View, plan: Plan) -> None:
        self._folder, self._postgres, self._view, self._plan = folder, postgres, view, plan
        self._store, self._record = folder / "outbox", folder / "acknowledged.jsonl"
        self._engine: subprocess.Popen[bytes] | None = None
        self._outages = 0
        # The bar at which the act ends.
        self._goal = 0

    def run(self) -> tuple[int, Report]:
        """Play all acts; returns the number of outages and the comparison."""
        plan, view = self._plan, self._view
        view.event("PostgreSQL is up", good=True)
        with self._stopping_engine():
            self._start_engine()
            # The engine learns what its calls do before PostgreSQL goes away, however long that takes.
            self._trade(plan.before, at_least=_LEARNING, more_s=_START_S)
            self._kill_postgres("in the middle of trading")
            self._trade(plan.outage)
            waiting = self._waiting()
            self._kill_engine()
            view.event(
                f"the engine was killed with SIGKILL while PostgreSQL is down; {waiting} on disk",
                good=False,
            )
            self._start_engine()
            self._trade(plan.resumed, more_s=_START_S)
            view.event(f"without PostgreSQL it resumed its session and traded on; {self._waiting()} on disk")
            self._start_postgres()
            self._trade(plan.after)
            self._kill_postgres("again, the engine lives on")
            self._trade(plan.second_outage)
            self._start_postgres()
            self._trade(plan.total - self._goal)
            self._end_engine()
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

    def _waiting(self) -> str:
        return counted(self._pending(), "entry waits", "entries wait")

    def _end_engine(self) -> None:
        assert self._engine is not None
        finishes = self._bar() >= self._plan.total
        if not finishes:
            self._engine.terminate()
        self._until(lambda: self._engine is not None and self._engine.poll() is not None, ends=True)
        self._check_engine(ends=True)
        how = "closed its positions and ended its session" if finishes else f"was stopped at bar {self._bar():,}"
        self._view.event(f"the engine {how}")

    def _kill_postgres(self, when: str) -> None:
        self._postgres.kill()
        self._outages += 1
        self._view.event(f"PostgreSQL was killed with SIGKILL {when}", good=False)

    def _start_postgres(self) -> None:
        self._postgres.start()
        self._view.event("PostgreSQL is back", good=True)

    def _trade(self, bars: int, at_least: int = 1, more_s: float = 0.0) -> None:
        """Let the engine trade so many bars more, or as many as it can in the time of the act and `more_s`."""
        self._goal += bars
        began, ends_s = self._bar(), time.monotonic() + more_s + self._plan.slack * bars / self._plan.pace

        def over() -> bool:
            bar = self._bar()
            return bar >= self._goal or (bar >= began + at_least and time.monotonic() >= ends_s)

        self._until(over)

    def _until(self, done: Callable[[], bool], *, ends: bool = False) -> None:
        patience = Patience(_STILL_S, time.monotonic)
        while not done():
            self._check_engine(ends=ends)
            status = self._look()
            if patience.is_lost((self._bar(), None if status is None else settled(status))):
                raise click.ClickException(
                    f"the engine made no progress at bar {self._bar()} of {self._plan.total} for {_STILL_S:g} s: "
                    f"{self._engine_said() or 'its log is empty'}"
                )
            time.sleep(_LOOK_S)

    def _check_engine(self, *, ends: bool) -> None:
        """Raise when the engine ended by itself though it should not have, or badly."""
        code = None if self._engine is None else self._engine.poll()
        if code is None or (code == 0 and (ends or self._bar() >= self._plan.total - 1)):
            return
        raise click.ClickException(f"the engine ended with exit code {code}: {self._engine_said()}")

    def _engine_said(self) -> str:
        """The end of the engine's log."""
        return (self._folder / "engine.log").read_text(errors="replace").strip()[-2000:]

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

    def _look(self) -> OutboxStatus | None:
        status = self._status()
        self._show(status)
        if status is not None and status.needs_operator:
            raise click.ClickException(f"the outbox needs an operator: {'; '.join(status.needs_operator)}")
        return status

    def _show(self, status: OutboxStatus | None) -> None:
        alive = self._engine is not None and self._engine.poll() is None
        self._view.figures(DemoFigures(self._bar(), self._plan.total, status, alive, self._postgres.is_running))

    def _drain(self) -> None:
        url = self._postgres.url()
        manager = DatabaseManager(url)
        declared = bind(TRADING_OPERATIONS, lambda: manager)
        with Outbox.attach(self._store, operations=declared) as box:
            with Relay(box, PostgresTarget(url, declared)) as relay:
                patience = Patience(_STILL_S, time.monotonic)
                while not relay.drain(timeout=_LOOK_S):
                    status = box.status()
                    self._show(status)
                    if patience.is_lost(settled(status)) or not relay.running:
                        why = relay.died or status.relay.last_error or "no error was reported"
                        raise click.ClickException(
                            f"nothing was delivered for {_STILL_S:g} s, "
                            f"{counted(status.pending, 'entry is', 'entries are')} pending: {why}"
                        )
            status = box.status()
        manager.close()
        self._view.event(f"drained: {entries(status.completed)} applied, dead letters: {status.dead_letters}")
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
