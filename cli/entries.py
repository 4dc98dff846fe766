"""`atb outbox list | show`: which entries wait, which are dead, and everything about one."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from datetime import datetime
from itertools import chain
from typing import Any
from uuid import UUID

import click

from outbox import Entry, EntryNotFound, Outbox
from outbox.monitoring.held_back import LOOKED_AT, counts
from outbox.store.envelope import Record, to_us
from outbox.words import counted, printable

from .common import (
    Number,
    Refused,
    Text,
    directory_option,
    in_one_sentence,
    redacted,
    say_redacted,
    settings,
    since_when,
    without_password,
)
from .listing import Listing, Looking, What

_SHOWN_BYTES = 256


@click.command("list")
@directory_option
@click.option("--dead", is_flag=True, help="Dead letters; the default.")
@click.option("--pending", is_flag=True, help="Entries that wait for delivery.")
@click.option("--held-back", is_flag=True, help="Pending entries behind a dead letter of their key.")
@click.option("--operation", metavar="NAME", help="Only those of this operation.")
@click.option("--order-by", type=Text(), metavar="KEY", help="Only those of this ordering key.")
@click.option("--since", metavar="TIME", callback=since_when, help="Only those captured since: 2h, 7d, a date in UTC.")
@click.option(
    "--limit",
    type=Number(1, 1_000_000_000, whole=True),
    metavar="N",
    default=100,
    show_default=True,
    help="Show at most this many.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of a table.")
@in_one_sentence
def list_entries(
    directory: str | None,
    dead: bool,
    pending: bool,
    held_back: bool,
    operation: str | None,
    order_by: str | None,
    since: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """List dead letters or pending entries, oldest first.

    Each dead letter has the number of entries that it holds back.  Quarantined records are listed with them.  Works
    beside a running engine.
    """
    if [dead, pending, held_back].count(True) > 1:
        raise click.UsageError("give one of --dead, --pending and --held-back")
    what = What.PENDING if pending else What.HELD_BACK if held_back else What.DEAD
    since_us = None if since is None else to_us(since)
    unfiltered = operation is None and order_by is None and since is None

    def wanted(record: Record) -> bool:
        return (
            operation in (None, record.operation)
            and order_by in (None, record.order_by)
            and (since_us is None or record.captured_us >= since_us)
        )

    with Outbox.attach(config=settings(directory), readonly=True) as box:
        found = Listing(box, what, wanted, limit, unfiltered=unfiltered)
        shown = [record.entry(strict=False) for record in found.shown]
        held = _held_back(box, shown) if what is What.DEAD else {}
        quarantined = box.store.quarantined() if unfiltered and what is What.DEAD else []
    if as_json:
        for entry in shown:
            behind = {"holds_back": held[entry.seq]} if held else {}
            click.echo(json.dumps(redacted({**_as_dict(entry), **behind})))
        for seq, raw in quarantined:
            click.echo(json.dumps({"seq": seq, "status": "QUARANTINED", "raw": raw.hex()}))
        return
    if not shown and not quarantined:
        click.echo(none_of(what.value, found.unfiltered))
        return
    columns = ("seq", "operation", "order by", "captured", "attempts", *(["holds back"] if held else []), "why")
    rows = [_row(entry, held) for entry in shown]
    rows += [
        (str(seq), "?", "?", "?", "?", "0", f"quarantined: {counted(len(raw), 'damaged byte')}")
        for seq, raw in quarantined
    ]
    if quarantined and not held:
        columns = (*columns[:-1], "holds back", "why")
    _print(columns, rows)
    if found.more:
        click.echo(f"... and {found.more} more (--limit)")


def none_of(nouns: str, unfiltered: int) -> str:
    """That nothing is shown; a filter that left nothing over must not read as if there were nothing."""
    are = "is" if unfiltered == 1 else "are"
    return f"no {nouns} match; without the filter there {are} {unfiltered}" if unfiltered else f"no {nouns}"


def _row(entry: Entry, held: dict[int, str]) -> tuple[str, ...]:
    cells = (entry.seq, entry.operation, entry.order_by or "-", _time(entry.captured_at), entry.attempts)
    why = without_password(entry.error or "") or ("" if held else for_people(dict(entry.args)))
    return (*(printable(str(cell)) for cell in cells), *([held[entry.seq]] if held else []), printable(why))


def _print(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table, or where the terminal is too narrow for it a block for each row; nothing is cut."""
    last = columns[-1] if any(row[-1] for row in rows) else ""
    columns = (*columns[:-1], "arguments" if last and "holds back" not in columns else last)
    table = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    if (
        sys.stdout is not None
        and sys.stdout.isatty()
        and sum(widths[:-1]) + 2 * len(widths) + 20 > shutil.get_terminal_size().columns
    ):
        for row in rows:
            click.echo(f"{row[0]} {row[1]}")
            for name, cell in list(zip(columns, row, strict=True))[2:]:
                if cell:
                    say_redacted(f"  {name}: {cell}", indent=4)
        return
    for row in table:
        # The reason comes last and is not cut, however wide the terminal.
        cells = [f"{cell:<{width}}" for cell, width in zip(row[:-1], widths, strict=False)]
        click.echo("  ".join([*cells, row[-1]]).rstrip())


@click.command(short_help="Show everything about an entry, whatever its state.")
@directory_option
@click.argument("seq", type=Text(), metavar="[SEQ|KEY]", required=False)
@click.option("--key", "text", type=Text(), metavar="TEXT", help="Entries whose caller gave this key.")
@click.option(
    "--where",
    type=Text(),
    metavar="NAME=VALUE",
    multiple=True,
    help="Entries with this argument; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; several are one a line.")
@in_one_sentence
def show(directory: str | None, seq: str | None, text: str | None, where: tuple[str, ...], as_json: bool) -> None:
    """Show everything about an entry: pending, settled, dead or quarantined.

    Give its sequence number; or its idempotency key, in 32 hexadecimal digits as `show` and `outbox_receipts` have it,
    or as the caller gave it; or an argument: --where client_order_id=A-1.
    """
    if [seq is not None, text is not None, bool(where)].count(True) != 1:
        raise click.UsageError("name an entry by SEQ, by KEY, by --key TEXT, or by --where NAME=VALUE")
    wanted = [_argument(one) for one in where]
    with Outbox.attach(config=settings(directory), readonly=True) as box:
        if seq is not None:
            found = _named(box, seq)
        elif text is not None:
            found = _called(box, text)
        else:
            found = _with(chain(box.pending(), box.ledger()), wanted)
    if not found:
        what = " and ".join(where) if where else f"the key {seq or text!r:.100}"
        raise Refused(f"no entry has {what}: it never existed, or its retention has ended")
    if as_json:
        for one in found:
            click.echo(json.dumps(redacted(one), indent=None if where or len(found) > 1 else 2))
        return
    for number, one in enumerate(found):
        if number:
            click.echo()
        _show(one)
    if len(found) > 1:
        click.echo(f"\n{counted(len(found), 'entry', 'entries')}")


def _named(box: Outbox, name: str) -> list[dict[str, Any]]:
    """The entry of a sequence number, or those of a key."""
    if name.isdecimal() and len(name) < 20:
        seq = int(name)
        if not seq:
            raise click.UsageError("0 is not in the range of sequence numbers, which begin with 1")
        raw = dict(box.store.quarantined()).get(seq)
        if raw is not None:
            return [{"seq": seq, "status": "QUARANTINED", "raw": raw.hex()}]
        try:
            return [_as_dict(box.entry(seq))]
        except EntryNotFound as exc:
            if called := _called(box, name):
                return called
            raise Refused(f"entry {seq} is not in the store: it never existed, or its retention has ended") from exc
    try:
        record = box.store.find(UUID(name).bytes)
    except ValueError:
        record = None
    # Callers, too, take UUIDs as keys.
    return _called(box, name) if record is None else [_as_dict(record.entry(strict=False))]


def _called(box: Outbox, key: str) -> list[dict[str, Any]]:
    """Entries whose caller gave this key: it is hashed together with the operation, of which there may be several."""
    names: set[str] = set()
    for part in ("pending", "ledger"):
        # What cannot be read has no name; a verification reports it.
        names.update(record.operation for record in box.store.records(part, on_damage=lambda *_: None))
    found = {}
    for name in names:
        hashed = box.hash_of(name, {}, key=key)
        record = None if hashed is None else box.store.find(hashed)
        if record is not None:
            found[record.seq] = _as_dict(record.entry(strict=False))
    return [found[seq] for seq in sorted(found)]


def _argument(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"--where is {text!r} (allowed: NAME=VALUE, for example client_order_id=A-1)")
    return name, value


def _with(entries: Iterable[Entry], wanted: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Those with all `wanted` arguments, by sequence number: one that was settled meanwhile is met twice."""
    found = {one.seq: one for one in entries if all(_holds(one.args, name, value) for name, value in wanted)}
    return [_as_dict(found[seq]) for seq in sorted(found)]


def _holds(value: Any, name: str, text: str) -> bool:
    """Whether `value` has `name` with a value of this text, at any depth: calls of managers are nested."""
    if hasattr(value, "items"):
        return any((key == name and _as_text(one) == text) or _holds(one, name, text) for key, one in value.items())
    return isinstance(value, list | tuple) and any(_holds(one, name, text) for one in value)


def _show(found: dict[str, Any]) -> None:
    for name, value in found.items():
        if name == "args":
            click.echo("args")
            for argument, given in value.items():
                say_redacted(f"  {argument:<22}{for_people(given)}", indent=24)
        elif name == "raw":
            more = " ..." if len(value) > 2 * _SHOWN_BYTES else ""
            click.echo(f"{'raw':<16}{value[: 2 * _SHOWN_BYTES]}{more}")
        else:
            say_redacted(f"{name:<16}{for_people(value)}", indent=16)


def _held_back(box: Outbox, dead: list[Entry]) -> dict[int, str]:
    """How many pending entries wait behind each of `dead`, as text; a `+` where not all were looked at."""
    if not dead:
        return {}
    pending = Looking(box.store.records("pending", on_damage=lambda *_: None), LOOKED_AT)
    found = counts(pending, box.store.dead())
    return {entry.seq: f"{found[entry.seq]}{'+' if pending.ended_early else ''}" for entry in dead}


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


def for_people(value: Any) -> str:
    """A value of an argument as text, without passwords."""
    return _as_text(redacted(_plain(value)))


def _as_text(value: Any) -> str:
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"
