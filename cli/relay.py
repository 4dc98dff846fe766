"""`atb outbox relay`: the relay as a process of its own, for a service manager to keep running."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Event
from types import FrameType

import click

from outbox import Outbox, PostgresTarget, Relay
from outbox.metrics import start_metrics
from outbox.words import counted

from .common import (
    Refused,
    database_of,
    database_option,
    directory_option,
    in_one_sentence,
    operations_option,
    settings,
    without_password,
)
from .declared import required_operations

# Another process's entries are looked for so often, unless OUTBOX_SYNC_INTERVAL says otherwise: a look is cheap.
_INTERVAL_S = 0.1
_LOOK_S = 0.5
_STOP_S = 20.0


@click.command()
@directory_option
@database_option
@operations_option
@click.option(
    "--interval",
    type=click.FloatRange(0.001, 3600),
    help=f"Seconds between two looks for new entries; default: OUTBOX_SYNC_INTERVAL, else {_INTERVAL_S:g}.",
)
@click.option("--metrics", metavar="HOST:PORT", help="Serve metrics for Prometheus there; needs the extra `metrics`.")
@in_one_sentence
def relay(
    directory: str | None,
    database_url: str | None,
    operations: str | None,
    interval: float | None,
    metrics: str | None,
) -> None:
    """Move entries into PostgreSQL until SIGTERM, SIGHUP or Ctrl-C.

    The engine only enqueues, so delivering takes none of its time.  Its log goes to stderr.  Exit code 0: it was asked
    to stop; what was not delivered stays pending.  1: it died or did not end in time.  2: it could not begin.
    """
    if interval is None and "OUTBOX_SYNC_INTERVAL" not in os.environ:
        interval = _INTERVAL_S
    config = settings(directory, database_url=database_url, sync_interval=interval)
    with _logging_to_stderr(), _asked_to_stop() as stop, Outbox.attach(config=config) as box:
        declared = required_operations(operations)
        worker = Relay(box, PostgresTarget(database_of(box), declared, config=box.config))
        with nullcontext() if metrics is None else start_metrics(box, metrics) as server:
            if server is not None:
                click.echo(f"metrics at http://{server.address}/metrics", err=True)
            _deliver(worker, box, stop)


def _deliver(worker: Relay, box: Outbox, stop: Event) -> None:
    """Run the relay until it is asked to stop.  Raises `_Died`."""
    worker.start()
    click.echo(f"delivering from {box.path}, {_pending(box)}", err=True)
    try:
        while worker.running and not stop.wait(_LOOK_S):
            pass
    finally:
        ended = worker.stop(_STOP_S)
    if worker.died is not None:
        raise _Died(without_password(f"the relay died: {worker.died}"))
    if not ended:
        raise _Died(f"the relay did not end within {_STOP_S:g} s; nothing is lost")
    click.echo(f"stopped, {_pending(box)}", err=True)


class _Died(Refused):
    """Exit code 1: a service manager starts it again."""

    exit_code = 1


@contextmanager
def _asked_to_stop() -> Iterator[Event]:
    """An event that SIGTERM, SIGINT and SIGHUP set, unless the last is ignored, as under nohup."""
    stop = Event()

    def ask(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        stop.set()

    asking = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asking.append(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in asking}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Redacted(logging.Formatter):
    """A line without passwords, the traceback of an error included."""

    def format(self, record: logging.LogRecord) -> str:
        return without_password(super().format(record))


@contextmanager
def _logging_to_stderr() -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacted("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("outbox")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _pending(box: Outbox) -> str:
    return f"{counted(box.status().pending, 'entry is', 'entries are')} pending"
