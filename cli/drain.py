"""`atb outbox drain`: relay until the outbox is empty, or watch the engine's own relay do it."""

from __future__ import annotations

import importlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from outbox import ConfigError, Operation, Outbox, OutboxStatus, PostgresTarget, Relay, StoreLocked

from .common import Interrupted, Refused, directory_option, in_one_sentence, settings, without_password

_LOOK_S = 0.2
_PLAIN_EVERY_S = 5.0
# A batch in flight gets half of it when the relay is stopped.
_STOP_S = 4.0


def _finite(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 <= value < math.inf:
        raise click.BadParameter(f"{value} is not allowed: give seconds, 0 or more", context, parameter)
    return value


@click.command()
@directory_option
@click.option("--database-url", metavar="URL", help="PostgreSQL to drain into; default: DATABASE_URL.")
@click.option(
    "--operations",
    metavar="MODULE:NAME",
    envvar="OUTBOX_OPERATIONS",
    help="Where your program declares its operations: an iterable, or a callable that returns one.",
)
@click.option("--timeout", type=float, callback=_finite, default=60.0, show_default=True, help="Seconds to try.")
@click.pass_context
@in_one_sentence
def drain(
    context: click.Context, directory: str | None, database_url: str | None, operations: str | None, timeout: float
) -> None:
    """Move everything that is pending into PostgreSQL.

    Beside a running relay it waits for that one.  Interrupting it is safe: what was applied stays applied, the rest
    stays pending.  Exit code 0: all that was pending is delivered.  1: something is left.  2: it could not be tried.
    """
    config = settings(directory, database_url=database_url)
    with Outbox.attach(config=config) as box:
        before = box.status()
        progress = _Progress(before.pending)
        try:
            done = before.pending == 0 or _Drain(box, operations, timeout, progress).run(before.last_seq)
        except KeyboardInterrupt as exc:
            raise Interrupted(f"{box.status().pending} entries are still pending, nothing is lost") from exc
        finally:
            progress.close()
        now = box.status()
        _report(before, now, done, timeout)
        context.exit(1 if not done or now.dead_letters or now.quarantined else 0)


class _Drain:
    """One attempt, by a relay of its own or by watching another process's."""

    def __init__(self, box: Outbox, operations: str | None, timeout: float, progress: _Progress) -> None:
        self._box, self._operations, self._progress = box, operations, progress
        self._deadline = time.monotonic() + timeout
        self._pause = threading.Event()

    def run(self, goal: int) -> bool:
        """Whether everything up to sequence number `goal` was delivered in time, but for what is held back."""
        relay: Relay | None = None
        while True:
            now = self._box.status()
            if now.relay.alive:
                return self._watch(goal, now) or (not self._late() and self.run(goal))
            relay = relay or self._own_relay()
            try:
                relay.start()
            except StoreLocked:
                continue  # another one was quicker
            try:
                return self._relay(relay)
            finally:
                relay.stop(_STOP_S)

    def _own_relay(self) -> Relay:
        config = self._box.config
        if self._operations is None:
            raise ConfigError(
                "it is not known how entries are applied", hint="give --operations MODULE:NAME or set OUTBOX_OPERATIONS"
            )
        if config.database_url is None:
            raise ConfigError("DATABASE_URL is not set", hint="set it or give --database-url")
        # A callable that declares operations may read the same settings.
        os.environ["DATABASE_URL"] = config.database_url
        return Relay(self._box, PostgresTarget(config.database_url, load_operations(self._operations), config=config))
