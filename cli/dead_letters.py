"""`atb outbox list | show | retry | discard`: an operator looks at dead letters and answers them."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from itertools import islice
from typing import Any

import click

from outbox import Entry, EntryNotFound, Outbox

from .common import Refused, directory_option, in_one_sentence, settings, without_password

# Looking for what is held back stops here: it is a figure for people.
_LOOKED_AT = 50_000
_SHOWN_BYTES = 256


@click.command("list")
@directory_option
@click.option("--operation", metavar="NAME", help="Only dead letters of this operation.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Show at most this many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of a table.")
@in_one_sentence
def list_dead_letters(directory: str | None, operation: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, oldest first, with what each of them holds back.

    Damaged records that were quarantined are listed too.  Works beside a running engine.
    """
    with Outbox.attach(config=settings(directory), readonly=True) as box:
        dead = [entry for entry in box.dead_letters() if operation in (None, entry.operation)]
        shown = dead[:limit]
        held = _held_back(box, shown)
        quarantined = [] if operation else box.store.quarantined()
    if as_json:
        for entry in shown:
            click.echo(without_password(json.dumps({**_as_dict(entry), "holds_back": held[entry.seq]})))
        for seq, raw in quarantined:
            click.echo(json.dumps({"seq": seq, "status": "QUARANTINED", "raw": raw.hex()}))
        return
    if not dead and not quarantined:
        click.echo("no dead letters")
        return
    rows: list[tuple[str, ...]] = [("seq", "operation", "order by", "captured", "attempts", "holds back", "why")]
    for entry in shown:
        cells = (entry.seq, entry.operation, entry.order_by or "-", _time(entry.captured_at), entry.attempts)
        rows.append((*map(str, cells), held[entry.seq], without_password(entry.error or "")))
    rows += [(str(seq), "?", "?", "?", "?", "0", f"quarantined: {len(raw)} damaged bytes") for seq, raw in quarantined]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        # The reason comes last and is not cut, however wide the terminal.
        click.echo("  ".join([f"{cell:<{width}}" for cell, width in zip(row[:-1], widths, strict=False)] + [row[-1]]))
    if len(dead) > limit:
        click.echo(f"... and {len(dead) - limit} more (--limit)")


@click.command()
@directory_option
@click.argument("seq", type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@in_one_sentence
def show(directory: str | None, seq: int, as_json: bool) -> None:
    """Show everything about entry SEQ: pending, settled, dead or quarantined."""
    with Outbox.attach(config=settings(directory), readonly=True) as box:
        raw = dict(box.store.quarantined()).get(seq)
        try:
            found: dict[str, Any] = (
                _as_dict(box.entry(seq)) if raw is None else {"seq": seq, "status": "QUARANTINED", "raw": raw.hex()}
            )
        except EntryNotFound as exc:
            raise Refused(f"entry {seq} is not in the store: it never was, or its retention has ended") from exc
    if as_json:
        click.echo(without_password(json.dumps(found, indent=2)))
        return
    for name, value in found.items():
        if name == "args":
            click.echo("args")
            for argument, given in value.items():
                click.echo(without_password(f"  {argument:<22}{_for_people(given)}"))
        elif name == "raw":
            more = " ..." if len(value) > 2 * _SHOWN_BYTES else ""
            click.echo(f"{'raw':<16}{value[: 2 * _SHOWN_BYTES]}{more}")
        else:
            click.echo(without_password(f"{name:<16}{_for_people(value)}"))


@click.command()
@directory_option
@click.argument("seq", metavar="[SEQ]...", type=click.IntRange(1), nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every dead letter.")
@click.option("--operation", metavar="NAME", help="With --all: only those of this operation.")
@in_one_sentence
def retry(directory: str | None, seq: tuple[int, ...], everything: bool, operation: str | None) -> None:
    """Try dead letters again, at their old places in the order.  Mend the cause first.

    A dead letter of a transaction is tried again together with the others of it.
    """
    if bool(seq) == everything:
        raise click.UsageError("name the dead letters by SEQ, or all of them with --all")
    if operation and not everything:
        raise click.UsageError("--operation goes with --all")
    with Outbox.attach(config=settings(directory)) as box:
        if everything:
            seq = tuple(entry.seq for entry in box.dead_letters() if operation in (None, entry.operation))
        done: set[int] = set()
        for number in seq:
            if number not in done:
                done |= {entry.seq for entry in box.requeue(number)}
    click.echo(f"requeued: {_numbers(done)}" if done else "no dead letters")


@click.command()
@directory_option
@click.argument("seq", metavar="SEQ...", type=click.IntRange(1), nargs=-1, required=True)
@click.option("--reason", required=True, help="Why; it is kept in the ledger.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@in_one_sentence
def discard(directory: str | None, seq: tuple[int, ...], reason: str, yes: bool) -> None:
    """Give up dead letters or quarantined records: they will never be written to PostgreSQL.

    Later entries of their ordering keys go on.  A dead letter of a transaction is given up with the others of it.
    """
    with Outbox.attach(config=settings(directory)) as box:
        if not yes:
            _ask(box, seq)
        done: set[int] = set()
        for number in seq:
            if number not in done:
                done |= {entry.seq for entry in box.discard(number, reason)} or {number}
    click.echo(f"discarded: {_numbers(done)}")


def _ask(box: Outbox, seqs: tuple[int, ...]) -> None:
    damaged = {seq for seq, _ in box.store.quarantined()}
    for seq in seqs:
        entry = None if seq in damaged else box.entry(seq)
        click.echo(f"{seq}: {'quarantined' if entry is None else f'{entry.operation} {_for_people(dict(entry.args))}'}")
    click.confirm("Give these up for good?", abort=True)


def _held_back(box: Outbox, dead: list[Entry]) -> dict[int, str]:
    """How many pending entries wait behind each of `dead`, as text; a `+` where not all were looked at."""
    if not dead:
        return {}
    counts: Counter[str | None] = Counter()
    looked = 0
    for entry in islice(box.pending(), _LOOKED_AT):
        counts[entry.order_by] += 1
        looked += 1
    more = "+" if looked == _LOOKED_AT else ""
    return {entry.seq: f"{counts[entry.order_by] if entry.order_by is not None else 0}{more}" for entry in dead}


def _as_dict(entry: Entry) -> dict[str, Any]:
    """Plain values for JSON: times as ISO 8601, other types as text."""
    values = {name: getattr(entry, name) for name in entry.__dataclass_fields__}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _for_people(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(_plain(value))


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"


def _numbers(seqs: set[int]) -> str:
    return ", ".join(map(str, sorted(seqs)))
