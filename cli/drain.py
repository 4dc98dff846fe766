"""`atb outbox drain`: relay until the outbox is empty, or watch the engine's own relay do it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from threading import Event

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from outbox import Outbox, OutboxStatus, PostgresTarget, Relay, StoreLocked
from outbox.words import counted, entries

from ..clock import Patience
from .common import (
    Interrupted,
    Refused,
    database_of,
    database_option,
    directory_option,
    in_one_sentence,
    operations_option,
    say,
    settings,
    settled,
    timeout_option,
    without_password,
)
from .declared import check_operations, required_operations
from .pace import DrainPace
from .screen import screen

_LOOK_S = 0.2
_PLAIN_EVERY_S = 5.0
# A batch in flight gets half of it when the relay is stopped.
_STOP_S = 4.0


@click.command()
@directory_option
@database_option
@operations_option
@timeout_option
@click.pass_context
@in_one_sentence
def drain(
    context: click.Context, directory: str | None, database_url: str | None, operations: str | None, timeout: float
) -> None:
    """Move every pending entry into PostgreSQL.

    Continues for as long as entries are delivered, and waits for a running relay.  Interrupting is safe: applied
    entries stay applied, the rest stays pending.  Exit code 0: all are delivered.  1: some are left.  2: it could not
    be tried.
    """
    config = settings(directory, database_url=database_url)
    check_operations(operations)
    with Outbox.attach(config=config) as box:
        before = box.status()
        # What the last relay met may be over; this command's own relay reports it again if it is not.
        progress = _Progress(before.pending, since=None if before.relay.alive else before.relay.since)
        patience = Patience(timeout, box.clock.monotonic)
        try:
            done = before.pending == 0 or _drain_or_wait(box, operations, patience, progress)
        except KeyboardInterrupt as exc:
            raise Interrupted(
                f"{counted(box.status().pending, 'entry is', 'entries are')} still pending, nothing is lost"
            ) from exc
        finally:
            progress.close()
        context.exit(_report(before, box.status(), done, timeout))


def _drain_or_wait(box: Outbox, operations: str | None, patience: Patience, progress: _Progress) -> bool:
    """Whether what is pending now was delivered, by this process's relay or another's, before `patience` was lost."""
    now = box.status()
    if now.paused is not None:
        return False
    if now.relay.alive:
        progress.say(f"the relay of process {now.relay.pid or '?'} is at work, waiting for it")
        if _wait_for_other(box, now.last_seq, patience, progress):
            return True
        if patience.lost or box.status().paused is not None:
            return False
        progress.say("that relay has ended, this command continues")
    declared = required_operations(operations)
    relay = Relay(box, PostgresTarget(database_of(box), declared, config=box.config))
    try:
        relay.start()
    except StoreLocked:
        return _drain_or_wait(box, operations, patience, progress)  # another one was quicker
    try:
        return _until(lambda: _look_after(relay), box, patience, progress)
    finally:
        relay.stop(_STOP_S)


def _look_after(relay: Relay) -> bool:
    if relay.died is not None:
        raise Refused(without_password(f"the relay died: {relay.died}"))
    return relay.drain(timeout=_LOOK_S)


def _wait_for_other(box: Outbox, goal: int, patience: Patience, progress: _Progress) -> bool:
    """Wait until the relay of another process has passed sequence number `goal`, while there is one."""
    pause = Event()

    def passed() -> bool:
        pause.wait(_LOOK_S)
        now = box.status()
        return now.watermark >= goal or now.pending <= now.held_back

    return _until(passed, box, patience, progress, only_beside_a_relay=True)


def _until(
    done: Callable[[], bool], box: Outbox, patience: Patience, progress: _Progress, *, only_beside_a_relay: bool = False
) -> bool:
    while not done():
        now = box.status()
        progress.show(now)
        if now.paused is not None:
            return False
        if patience.is_lost(settled(now)) or (only_beside_a_relay and not now.relay.alive):
            return False
    progress.show(box.status())
    return True


def _report(before: OutboxStatus, now: OutboxStatus, done: bool, timeout: float) -> int:
    """Say how it ended; returns the exit code."""
    if before.pending == 0:
        click.echo("nothing is pending")
    if now.dead_letters:
        dead = counted(now.dead_letters, "dead letter needs", "dead letters need")
        held = f"; {entries(now.held_back)} held back" if now.held_back else ""
        say(f"{dead} an operator{held} (see `atb outbox list`)")
    if now.quarantined:
        damaged = counted(now.quarantined, "damaged entry is", "damaged entries are")
        say(f"{damaged} quarantined, not delivered (see `atb outbox list`)")
    if not done and now.paused is not None:
        say(f"{now.paused.sentence()}; pending: {now.pending}", err=True)
    elif not done:
        why = f": {now.relay.last_error}" if now.relay.last_error else ""
        left = counted(now.pending, "entry is", "entries are")
        way_out = "nothing is lost; `atb outbox status` shows what to do, then drain again"
        sentence = f"not drained: {left} pending, nothing was delivered for {timeout:g} s{why} ({way_out})"
        say(sentence, err=True)
    elif before.pending and not now.dead_letters and not now.quarantined:
        left = f"{counted(now.pending, 'newer one is', 'newer ones are')} pending" if now.pending else "none pending"
        say(f"drained: {entries(now.completed - before.completed)} completed, {left}")
    return 0 if done and now.dead_letters == now.quarantined == 0 else 1


class _Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, *, since: datetime | None = None) -> None:
        """`since`: when an error began that an earlier relay has left behind, and that is not shown."""
        self._total, self._left_behind = total, since
        self._said: set[str] = set()
        self._pace = DrainPace()
        self._plain_at = time.monotonic() + _PLAIN_EVERY_S
        console = screen(err=True) if total else None
        self._bar: Progress | None = None
        if console is not None:
            columns = (TextColumn("draining"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("", total=total)
            self._bar.start()

    def show(self, now: OutboxStatus) -> None:
        """How things stand, and what keeps entries from being delivered."""
        self._total = max(self._total, now.pending)
        self._pace.look(time.monotonic(), settled(now), now.pending)
        speed = self._pace.sentence()
        if self._bar is not None:
            done = self._total - now.pending
            self._bar.update(self._task, total=self._total, completed=done, description=speed)
        elif time.monotonic() >= self._plain_at:
            self._plain_at = time.monotonic() + _PLAIN_EVERY_S
            click.echo(f"{entries(now.pending)} pending" + (f", {speed}" if speed else ""), err=True)
        relay = now.relay
        is_news = relay.since is None or relay.since != self._left_behind
        if relay.alive and relay.last_error is not None and is_news:
            self.say(f"delivery fails and is tried again: {relay.last_error}")

    def say(self, sentence: str) -> None:
        """A line of its own, once."""
        if sentence in self._said:
            return
        self._said.add(sentence)
        if self._bar is not None:
            # As Text, since what PostgreSQL said may look like markup.
            self._bar.console.print(Text(without_password(sentence)))
        else:
            say(sentence, err=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
