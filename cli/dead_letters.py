"""`atb outbox retry | discard`: an operator answers dead letters."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

import click

from outbox import Entry, EntryInDelivery, Outbox
from outbox.answers import require_reason

from .common import Number, directory_option, in_one_sentence, settings
from .entries import for_people, none_of

# So long a discard waits for a moment in which the entry is in no batch, looking so often.
_WAIT_S = 10.0
_LOOK_S = 0.02


@click.command()
@directory_option
@click.argument("seq", metavar="[SEQ]...", type=Number(1, whole=True), nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every dead letter.")
@click.option("--operation", metavar="NAME", help="With --all: only those of this operation.")
@in_one_sentence
def retry(directory: str | None, seq: tuple[int, ...], everything: bool, operation: str | None) -> None:
    """Try dead letters again, at their old places in the order.

    Correct the cause first.  A dead letter of a transaction is tried again together with the others of it.
    """
    if bool(seq) == everything:
        raise click.UsageError("name the dead letters by SEQ, or all of them with --all")
    if operation and not everything:
        raise click.UsageError("--operation goes with --all")
    with Outbox.attach(config=settings(directory)) as box:
        dead = list(box.dead_letters()) if everything else []
        if everything:
            seq = tuple(entry.seq for entry in dead if operation in (None, entry.operation))
        with _said("requeued") as done:
            for number in seq:
                if number not in done:
                    done |= {entry.seq for entry in box.requeue(number)}
    if not done:
        click.echo(none_of("dead letters", len(dead)))


@click.command()
@directory_option
@click.argument("seq", metavar="SEQ...", type=Number(1, whole=True), nargs=-1, required=True)
@click.option("--reason", required=True, help="Why; it is kept in the ledger.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@in_one_sentence
def discard(directory: str | None, seq: tuple[int, ...], reason: str, yes: bool) -> None:
    """Give up dead letters, quarantined records or pending entries.

    They are never written to PostgreSQL; later entries of their ordering keys go on.  An entry of a transaction is
    given up with the others of it.  For a pending entry in a relay's batch the command waits up to 10 s.
    """
    require_reason(reason)
    with Outbox.attach(config=settings(directory)) as box:
        if not yes:
            _ask(box, seq)
        with _said("discarded") as done:
            for number in seq:
                if number not in done:
                    done |= {entry.seq for entry in _discard(box, number, reason)} or {number}


def _discard(box: Outbox, seq: int, reason: str) -> list[Entry]:
    """Discard an entry between two tries of a relay.  Raises `EntryInDelivery` where there is no such moment."""
    deadline = box.clock.monotonic() + _WAIT_S
    while True:
        try:
            return box.discard(seq, reason)
        except EntryInDelivery:
            if box.clock.monotonic() >= deadline:
                raise
        Event().wait(_LOOK_S)


def _ask(box: Outbox, seqs: tuple[int, ...]) -> None:
    damaged = {seq for seq, _ in box.store.quarantined()}
    for seq in seqs:
        entry = None if seq in damaged else box.entry(seq)
        click.echo(f"{seq}: {'quarantined' if entry is None else f'{entry.operation} {for_people(dict(entry.args))}'}")
    try:
        confirmed = click.confirm("Give these up for good?")
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo()
        raise click.UsageError("nobody answered, so nothing was given up; --yes does not ask") from None
    if not confirmed:
        raise click.Abort


@contextmanager
def _said(what: str) -> Iterator[set[int]]:
    """Name the entries that were answered within the block, also where one of them was refused."""
    done: set[int] = set()
    try:
        yield done
    finally:
        if done:
            click.echo(f"{what}: {', '.join(map(str, sorted(done)))}")
