"""`atb outbox drain`: relay until the outbox is empty, or watch the engine's own relay do it."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from outbox import ConfigError, Operation, Outbox, OutboxStatus, PostgresTarget, Relay, StoreLocked

from .common import directory_option, in_one_sentence, settings, without_password

_LOOK_S = 0.2
_PLAIN_EVERY_S = 5.0


@click.command()
@directory_option
@click.option("--database-url", metavar="URL", help="PostgreSQL to drain into; default: DATABASE_URL.")
@click.option(
    "--operations",
    metavar="MODULE:NAME",
    envvar="OUTBOX_OPERATIONS",
    help="Where your program declares its operations: an iterable, or a callable that returns one.",
)
@click.option("--timeout", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds to try.")
@click.pass_context
@in_one_sentence
def drain(
    context: click.Context, directory: str | None, database_url: str | None, operations: str | None, timeout: float
) -> None:
    """Move everything that is pending into PostgreSQL.

    Beside a running relay it waits for that one.  Interrupting it is safe: what was applied stays applied, the rest
    stays pending.  Exit code 0: nothing is left to deliver.  1: something is.  2: it could not be tried.
    """
    config = settings(directory, database_url=database_url)
    with Outbox.attach(config=config, operations=[]) as box:
        before = box.status()
        if before.pending == 0 and before.dead_letters == before.quarantined == 0:
            click.echo("nothing is pending")
            return
        if before.pending == 0:
            _report(context, before, True, timeout)
            return
        progress = _Progress(before.pending)
        try:
            done = _drain_or_wait(box, operations, timeout, progress)
        except KeyboardInterrupt:
            click.echo(f"interrupted: {box.status().pending} entries are still pending, nothing is lost", err=True)
            context.exit(130)
        finally:
            progress.close()
        _report(context, box.status(), done, timeout)


def _drain_or_wait(box: Outbox, operations: str | None, timeout: float, progress: _Progress) -> bool:
    """Whether nothing is left to deliver, by this process's relay or another's."""
    deadline = time.monotonic() + timeout
    if box.status().relay.alive:
        if _wait_for_other(box, timeout, progress):
            return True
        if box.status().relay.alive:
            return False
        click.echo("that relay has ended, going on without it", err=True)
        timeout = max(0.0, deadline - time.monotonic())
    config = box.config
    if operations is None:
        raise ConfigError(
            "it is not known how entries are applied", hint="give --operations MODULE:NAME or set OUTBOX_OPERATIONS"
        )
    if config.database_url is None:
        raise ConfigError("DATABASE_URL is not set", hint="set it or give --database-url")
    # A callable that declares operations may read the same settings.
    os.environ["DATABASE_URL"] = config.database_url
    relay = Relay(box, PostgresTarget(config.database_url, load_operations(operations), config=config))
    try:
        relay.start()
    except StoreLocked:
        return _wait_for_other(box, timeout, progress)
    try:
        return _until(lambda: relay.drain(timeout=_LOOK_S), box, timeout, progress)
    finally:
        relay.stop()


def _wait_for_other(box: Outbox, timeout: float, progress: _Progress) -> bool:
    """Wait until the relay of another process has passed what is pending now."""
    first = box.status()
    click.echo(f"the relay of process {first.relay.pid} is at work, waiting for it", err=True)
    goal = first.last_seq

    def passed() -> bool:
        time.sleep(_LOOK_S)
        now = box.status()
        return now.watermark >= goal or now.pending <= now.held_back

    return _until(passed, box, timeout, progress, needs_relay=True)


def _until(
    done: Callable[[], bool], box: Outbox, timeout: float, progress: _Progress, *, needs_relay: bool = False
) -> bool:
    deadline = time.monotonic() + timeout
    while not done():
        now = box.status()
        progress.show(now)
        if time.monotonic() >= deadline or (needs_relay and not now.relay.alive):
            return False
    progress.show(box.status())
    return True


def _report(context: click.Context, now: OutboxStatus, done: bool, timeout: float) -> None:
    if now.dead_letters:
        click.echo(f"{now.dead_letters} dead letters need an operator; held back behind them: {now.held_back}")
    if now.quarantined:
        click.echo(f"{now.quarantined} damaged entries are quarantined and were not delivered")
    if done and now.pending == now.dead_letters == now.quarantined == 0:
        click.echo(f"drained: {now.completed} entries completed, none pending")
        return
    if not done:
        why = f": {now.relay.last_error}" if now.relay.last_error else ""
        click.echo(
            without_password(f"not drained within {timeout:g} s, {now.pending} entries are pending{why}"), err=True
        )
    context.exit(1)


def load_operations(where: str) -> list[Operation]:
    """The operations declared at `module:name`.  Raises `ConfigError` naming what is wrong."""
    module_name, _, name = where.partition(":")
    if not module_name or not name:
        raise ConfigError(
            f"--operations is {where!r}", hint="allowed: MODULE:NAME, for example myengine.outbox:OPERATIONS"
        )
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = getattr(importlib.import_module(module_name), name)
    except ImportError as exc:
        raise ConfigError(f"--operations is {where!r}, and {exc}") from exc
    except AttributeError:
        raise ConfigError(f"--operations is {where!r}, and {module_name} has no {name}") from None
    finally:
        sys.path.pop(0)
    declared = found() if callable(found) else found
    if not isinstance(declared, Iterable):
        raise ConfigError(f"--operations is {where!r}, which is {declared!r}", hint="allowed: an iterable of Operation")
    return list(declared)


class _Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._plain_at = time.monotonic() + _PLAIN_EVERY_S
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("draining"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("", total=total)
            self._bar.start()

    def show(self, now: OutboxStatus) -> None:
        self._total = max(self._total, now.pending)
        if self._bar is not None:
            self._bar.update(self._task, total=self._total, completed=self._total - now.pending)
        elif time.monotonic() >= self._plain_at:
            self._plain_at = time.monotonic() + _PLAIN_EVERY_S
            click.echo(f"{now.pending} entries pending", err=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
