"""`atb outbox relay`: the relay as a process of its own, for a service manager to keep running."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Event
from types import FrameType

import click

from outbox import Outbox, PostgresTarget, Relay
from outbox.log import Log
from outbox.metrics import start_metrics

from .common import (
    Number,
    Refused,
    database_of,
    database_option,
    directory_option,
    in_one_sentence,
    logged_settings,
    operations_option,
    without_password,
)
from .declared import required_operations
from .log_lines import FORMATS, LEVELS, logging_to_stderr

_log = Log("outbox.cli")

# Seconds between two polls for entries of another process, unless OUTBOX_SYNC_INTERVAL is set: a poll is cheap.
_INTERVAL_S = 0.1
_LOOK_S = 0.5
_STOP_S = 20.0


@click.command()
@directory_option
@database_option
@operations_option
@click.option(
    "--interval",
    type=Number(0.001, 3600),
    metavar="SECONDS",
    help=f"Seconds between two polls for new entries; default: OUTBOX_SYNC_INTERVAL, else {_INTERVAL_S:g}.",
)
@click.option("--metrics", metavar="HOST:PORT", help="Serve metrics for Prometheus there; needs the extra `metrics`.")
@click.option("--log-format", type=click.Choice(FORMATS), default="text", show_default=True, help="Format of the log.")
@click.option(
    "--log-level", type=click.Choice(LEVELS, case_sensitive=False), help="Lowest level logged; default: info."
)
@click.option("--verbose", is_flag=True, help="The same as --log-level debug: a line for each batch.")
def relay(
    directory: str | None,
    database_url: str | None,
    operations: str | None,
    interval: float | None,
    metrics: str | None,
    log_format: str,
    log_level: str | None,
    verbose: bool,
) -> None:
    """Move entries into PostgreSQL until SIGTERM, SIGHUP or Ctrl-C.

    Delivering here takes no time of the engine.  The log goes to stderr.  Exit code 0: it was asked to stop; entries
    that are not delivered stay pending.  1: it died or did not end in time.  2: it could not begin.
    """
    if verbose and log_level not in (None, "debug"):
        raise click.UsageError(f"--verbose contradicts --log-level {log_level}")
    level = "debug" if verbose else log_level or "info"
    with logging_to_stderr(log_format, level):
        try:
            _relay(directory, database_url, operations, interval, metrics)
        except click.ClickException as exc:
            if log_format == "text":
                raise
            _log.critical("%(error)s", error=exc.format_message())
            raise SystemExit(exc.exit_code) from exc


@in_one_sentence
def _relay(
    directory: str | None,
    database_url: str | None,
    operations: str | None,
    interval: float | None,
    metrics: str | None,
) -> None:
    if interval is None and "OUTBOX_SYNC_INTERVAL" not in os.environ:
        interval = _INTERVAL_S
    config = logged_settings(directory, database_url=database_url, sync_interval=interval)
    with _asked_to_stop() as stop, Outbox.attach(config=config) as box:
        declared = required_operations(operations)
        worker = Relay(box, PostgresTarget(database_of(box), declared, config=box.config))
        with nullcontext() if metrics is None else start_metrics(box, metrics) as server:
            if server is not None:
                _log.info("metrics at %(url)s", url=f"http://{server.address}/metrics")
            _deliver(worker, box, stop)


def _deliver(worker: Relay, box: Outbox, stop: Event) -> None:
    """Run the relay until it is asked to stop.  Raises `_Died`."""
    worker.start()
    _log.info("delivering from %(path)s, pending: %(pending)s", path=box.path, pending=box.status().pending)
    try:
        while worker.running and not stop.wait(_LOOK_S):
            pass
    finally:
        ended = worker.stop(_STOP_S)
    if worker.died is not None:
        raise _Died(without_password(f"the relay died: {worker.died}"))
    if not ended:
        raise _Died(f"the relay did not end within {_STOP_S:g} s; nothing is lost")
    _log.info("stopped, pending: %(pending)s", pending=box.status().pending)


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
