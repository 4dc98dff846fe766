"""`atb outbox retry | discard`: an operator answers dead letters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from threading import Event

import click

from outbox import Entry, EntryInDelivery, EntryNotFound, EntryStatus, Outbox, OutboxError
from outbox.store.envelope import was_discarded

from ..box import require_reason
from .common import Number, Text, directory_option, in_one_sentence, say, settings
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
        _answer(seq, "requeued", box.requeue)
    if not seq:
        click.echo(none_of("dead letters", len(dead)))


@click.command()
@directory_option
@click.argument("seq", metavar="SEQ...", type=Number(1, whole=True), nargs=-1, required=True)
@click.option("--reason", type=Text(), required=True, help="Why; it is kept in the ledger.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@in_one_sentence
def discard(directory: str | None, seq: tuple[int, ...], reason: str, yes: bool) -> None:
    """Give up dead letters, quarantined records or pending entries.

    They are never written to PostgreSQL; later entries of their ordering keys go on.  An entry of a transaction is
    given up with the others of it.  For a pending entry in a relay's batch the command waits up to 10 s.
    """
    require_reason(reason)
    with Outbox.attach(config=settings(directory)) as box:
        before = {number for number in seq if _is_discarded(box, number)}
        if before:
            click.echo(f"discarded before: {_listed(before)}")
        left = tuple(number for number in seq if number not in before)
        if left and not yes:
            _ask(box, left)
        _answer(left, "discarded", lambda number: _discard(box, number, reason))


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
        message = "nobody answered, so nothing was given up; --yes skips the question"
        raise click.UsageError(message) from None
    if not confirmed:
        raise click.Abort


def _answer(seqs: Iterable[int], what: str, answer: Callable[[int], list[Entry]]) -> None:
    """Answer one after the other, and say which were; one that is refused keeps no other from it.

    Raises the last refusal; the ones before it are printed.
    """
    done: set[int] = set()
    refused: list[OutboxError] = []
    try:
        for number in seqs:
            if number in done:
                continue
            try:
                done |= {entry.seq for entry in answer(number)} | {number}
            except (EntryNotFound, EntryInDelivery) as exc:
                refused.append(exc)
    finally:
        if done:
            click.echo(f"{what}: {_listed(done)}")
    for refusal in refused[:-1]:
        say(f"Error: {refusal}", err=True)
    if refused:
        raise refused[-1]


def _listed(seqs: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seqs)))


def _is_discarded(box: Outbox, seq: int) -> bool:
    """Whether an operator has given up this entry before, as far as the ledger still knows."""
    try:
        entry = box.entry(seq)
    except OutboxError:
        return False
    return entry.status is EntryStatus.FAILED and was_discarded(entry.error)
