"""Upgrades: checks that calls queued by an earlier version of the manager fit the present software and schema.

What does not fit is told apart from bad data: nothing is rejected because of a deployment.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError

from ... import Entry, EntryStatus, Outbox
from ...errors import ConfigError, TargetMisconfigured
from ...log import Log
from ..code.class_code import ClassCode
from ..manager.host import Host
from ..operations import NOTES, ManagerOperation, StoredCall, call_of
from ..preflight.whole import mapped_tables

_log = Log("outbox.integrations")

# So many pending calls are looked at when a manager is wired; of the rest each is looked at before it is replayed.
_LOOKED_AT = 5000
_SHOWN = 10
_NOT_NULL = "23502"
_OURS = f'"{NOTES}":'.encode()


def upgraded(operation: ManagerOperation, entry: Entry) -> Entry:
    """`entry` with the present names of its arguments, as the operation's `renames` declares them."""
    renames = operation.renames
    if renames.keys().isdisjoint(entry.args) and renames.keys().isdisjoint(_defaults_of(entry)):
        return entry
    args = {renames.get(name, name): value for name, value in entry.args.items()}
    notes = args.get(NOTES)
    if isinstance(notes, Mapping) and "defaults" in notes:
        defaults = {renames.get(name, name): value for name, value in notes["defaults"].items()}
        args[NOTES] = {**notes, "defaults": defaults}
    return replace(entry, args=args)


def refuse_unfit(outbox: Outbox, host: Host, calls: Mapping[str, ManagerOperation]) -> None:
    """Raise `ConfigError` with every kind of pending call that the present software cannot take."""
    found: dict[str, list[int]] = {}
    # A damaged one is the relay's to report.
    records = outbox.store.records("pending", on_damage=lambda *_: None)
    pending = (one for one in records if one.status is not EntryStatus.FAILED)
    looked_at = 0
    for record in islice(pending, _LOOKED_AT):
        looked_at += 1
        if _OURS not in record.args:
            continue  # of an operation that is no manager's
        for reason in _reasons(record, host, calls):
            found.setdefault(f"{record.operation}: {reason}", []).append(record.seq)
    if looked_at == _LOOKED_AT:
        _log.info("the first %(calls)s pending calls fit; each later one is checked before its replay", calls=looked_at)
    if not found:
        return
    kinds = [_counted(reason, seqs) for reason, seqs in list(found.items())[:_SHOWN]]
    more = f"; and {len(found) - _SHOWN} more kinds" if len(found) > _SHOWN else ""
    raise ConfigError(
        f"pending calls of an earlier version do not fit {_named(host)}: {'; '.join(kinds)}{more}",
        hint="nothing was delivered; correct the declaration, deliver with the earlier version (atb outbox drain), or "
        "give single calls up (atb outbox discard SEQ --reason TEXT)",
    )


def unbindable(signature: inspect.Signature, call: Mapping[str, Any], defaults: Mapping[str, Any]) -> str | None:
    """Explain why a stored call does not bind to a method; None if it does."""
    given = signature.parameters
    unknown = [name for name in call if name not in given]
    if unknown and any(one.kind is one.VAR_KEYWORD for one in given.values()):
        unknown = []
    missing = [
        name
        for name, one in given.items()
        if one.default is one.empty
        and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        and name not in call
        and name not in defaults
    ]
    if unknown and missing:
        pair = f'renames={{"{unknown[0]}": "{missing[0]}"}}'
        return f"made with {_list(unknown)}, and the method needs {_list(missing)}: declare {pair}"
    if unknown:
        way = f'declare renames={{"{unknown[0]}": "NEW NAME"}}, or let the method take it'
        return f"made with {_list(unknown)}, which the method does not take any more: {way}"
    if missing:
        return f"made without {_list(missing)}, which the method needs now: give it a default"
    return None


def must_fit(made: StoredCall, signature: inspect.Signature) -> None:
    """Raise `TargetMisconfigured` for a call that does not bind."""
    reason = unbindable(signature, made.given, made.notes.get("defaults", {}))
    if reason is not None:
        raise TargetMisconfigured(f"entry {made.entry.seq} ({made.operation.name}) was {reason}")


def _reasons(record: Any, host: Host, calls: Mapping[str, ManagerOperation]) -> Iterator[str]:
    operation = calls.get(record.operation)
    if operation is None:
        if host.has(record.operation):
            yield "not declared any more: declare it until they are delivered"
        else:
            yield "a method that the manager lacks now: keep it until they are delivered"
        return
    try:
        entry = upgraded(operation, record.entry())
    except ConfigError as exc:
        yield f"made with a value that cannot be decoded: {exc}"
        return
    reason = unbindable(host.signature(record.operation), call_of(entry), _defaults_of(entry))
    if reason is not None:
        yield reason


def _defaults_of(entry: Entry) -> Mapping[str, Any]:
    notes = entry.args.get(NOTES)
    defaults: Mapping[str, Any] = notes.get("defaults", {}) if isinstance(notes, Mapping) else {}
    return defaults


def _counted(reason: str, seqs: list[int]) -> str:
    name, _, rest = reason.partition(": ")
    count = "1 call" if len(seqs) == 1 else f"{len(seqs)} calls"
    return f"{name}: {count} (from entry {seqs[0]} on), {rest}"


def _list(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _named(host: Host) -> str:
    return "the manager" if host.manager_class is None else str(host.manager_class.__name__)


# -- columns that the manager does not know


def misconfigured(
    error: BaseException, operation: ManagerOperation, entry: Entry, host: Host
) -> TargetMisconfigured | None:
    """Name a column that must not be null and that the call cannot fill.

    A migration that made it so must stop the operation, and not reject one good call after the other.
    """
    origin = getattr(error, "orig", None)
    if not isinstance(error, DBAPIError) or getattr(origin, "pgcode", None) != _NOT_NULL:
        return None
    diagnostics = getattr(origin, "diag", None)
    column, table = getattr(diagnostics, "column_name", None), getattr(diagnostics, "table_name", None)
    if not column or not table or not _is_unknown(column, table, error, operation, entry, host):
        return None
    return TargetMisconfigured(
        f"column {column!r} of table {table!r} must not be null, and {operation.name} does not fill it",
        hint="give it a default, or let the manager fill it; the entries wait",
    )


def _is_unknown(
    column: str, table: str, error: DBAPIError, operation: ManagerOperation, entry: Entry, host: Host
) -> bool:
    """Whether the manager's software does not fill a column that the schema demands."""
    call, renamed = call_of(entry), operation.args
    if column in {*call, *(renamed.get(name, name) for name in call)}:
        return False
    if not _is_in(column, str(error.statement or "")):
        return True
    for one in _tables(host):
        if one.name == table and column in one.columns:
            # The manager's own model knows whether it may be null.
            return bool(one.columns[column].nullable)
    return None not in call.values()


def _is_in(column: str, statement: str) -> bool:
    return re.search(rf'(?<![\w."]){re.escape(column)}(?!\w)|"{re.escape(column)}"', statement) is not None


def _tables(host: Host) -> list[Table]:
    return [] if host.manager_class is None else mapped_tables(ClassCode(host.manager_class))
