"""Entry JSON: an entry as a JSON object.  What `export` writes, `import` reads back bit by bit, and `show` prints.

Arguments appear as PostgreSQL gets them, with the tree of types that restores the caller's exact values beside them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from .. import codec
from ..entry import EntryStatus
from ..errors import InvalidEntry
from ..operation import payload_hash
from ..words import counted
from .envelope import Record, from_us, to_us

# Of the file that `export` writes.
FORMAT = 1


class State(StrEnum):
    """What became of a record."""

    # Waits for delivery, or is held back.
    PENDING = "pending"
    # Applied to PostgreSQL.
    COMPLETED = "completed"
    # A dead letter: rejected, and waits for an operator.
    DEAD = "dead"
    # Rejected and given up, by an operator or because it was best effort.
    DISCARDED = "discarded"
    # No entry: what an operator, or the outbox itself, noted in the ledger.
    NOTE = "note"


def settled_state(record: Record, *, dead: bool) -> State:
    """The state of a record of the ledger; `dead`: whether it is in the index of dead letters."""
    if record.status is EntryStatus.FAILED:
        return State.DEAD if dead else State.DISCARDED
    return State.NOTE if record.key == record.id else State.COMPLETED


def to_object(record: Record, state: State, **more: Any) -> dict[str, Any]:
    """The JSON object of a record; `more` is added to it."""
    return {
        "kind": "entry",
        "state": state.value,
        "seq": record.seq,
        "operation": record.operation,
        "args": codec.from_json(record.args),
        "types": codec.from_json(record.types) if record.types else None,
        "order_by": record.order_by,
        "group": record.group or None,
        "members": record.members or None,
        "captured_at": from_us(record.captured_us).isoformat(),
        "settled_at": from_us(record.settled_us).isoformat() if record.settled_us else None,
        "attempts": record.attempts,
        "error": record.error,
        "result": codec.from_json(record.result) if record.result else None,
        "has_result": bool(record.result),
        "key": record.key.hex(),
        "id": str(UUID(bytes=record.id)),
        "payload_hash": record.payload_hash.hex(),
        "shape": record.shape.hex(),
        **more,
    }


def from_object(line: Mapping[str, Any]) -> tuple[Record, State]:
    """The record of a JSON object that `to_object` made.  Raises `InvalidEntry` where it was changed since."""
    try:
        state = State(line["state"])
        record = Record(
            seq=_number(line["seq"], 1),
            key=_bytes(line["key"], 16),
            id=UUID(line["id"]).bytes,
            operation=_text(line["operation"]),
            order_by=None if line["order_by"] is None else _text(line["order_by"]),
            payload_hash=_bytes(line["payload_hash"], 16),
            shape=_bytes(line["shape"], 8),
            args=codec.to_json(line["args"]),
            types=b"" if line["types"] is None else codec.to_json(line["types"]),
            captured_us=to_us(datetime.fromisoformat(line["captured_at"])),
            group=_number(line["group"] or 0, 0),
            members=_number(line["members"] or 0, 0),
            attempts=_number(line["attempts"], 0),
            status=_STATUS[state],
            error=None if line["error"] is None else _text(line["error"]),
            settled_us=0 if line["settled_at"] is None else to_us(datetime.fromisoformat(line["settled_at"])),
            result=codec.to_json(line["result"]) if line["has_result"] else b"",
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise InvalidEntry(
            f"it is no exported entry: {type(exc).__name__}: {exc}",
            hint="import the file as `atb outbox export` wrote it",
        ) from exc
    if record.payload_hash != payload_hash(record.operation, record.args, record.types):
        raise InvalidEntry(
            f"entry {record.seq}: operation and arguments do not fit their payload hash", hint="export it again"
        )
    return record, state


def raw_text(raw: bytes) -> str:
    """Bytes as JSON text."""
    return base64.b64encode(raw).decode()


def raw_bytes(text: str) -> bytes:
    """The inverse of `raw_text`; raises ValueError."""
    return base64.b64decode(text, validate=True)


_STATUS = {
    State.PENDING: EntryStatus.PENDING,
    State.COMPLETED: EntryStatus.COMPLETED,
    State.DEAD: EntryStatus.FAILED,
    State.DISCARDED: EntryStatus.FAILED,
    State.NOTE: EntryStatus.COMPLETED,
}


def _number(value: Any, least: int) -> int:
    if type(value) is not int or not least <= value < 1 << 64:
        raise ValueError(f"{value!r:.50} is no number from {least} on")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.50} is no text")
    return value


def _bytes(value: Any, size: int) -> bytes:
    found = bytes.fromhex(_text(value))
    if len(found) != size:
        raise ValueError(f"{value!r:.50} has {counted(len(found), 'byte')}, expected {size}")
    return found
