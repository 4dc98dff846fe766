"""Lines: checks an exported file before any of it is imported.

A file comes from anywhere.  Numbers are bounded, since what follows them must fit into PostgreSQL and into a datetime.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from ..errors import InvalidEntry, StoreCorrupt
from ..monitoring import pause
from ..monitoring.notices import parse
from ..rescue.pages import check_other
from ..store import ledger, small, withdrawal
from ..store.continuity import LATE_KEY, SESSIONS_KEY
from ..store.entry_json import from_object, raw_bytes
from ..store.envelope import pack, seq_key, to_us, unpack
from ..store.reads import ALARM_PREFIX, NOTICE_PREFIX, PAUSE

# Far below what PostgreSQL can hold as a bigint, in which sequence numbers end up: others must follow.
_MOST = 1 << 62
# What a datetime can hold.
_LATEST_US = to_us(datetime(9999, 1, 1, tzinfo=UTC))
# What a line raises that is not as it was written.
BAD = (
    InvalidEntry, StoreCorrupt, AttributeError, KeyError, OverflowError, TypeError, ValueError, struct.error,
)  # fmt: skip
REMAINS = frozenset({"quarantined", "damaged", "lost"})


def check_header(header: dict[str, Any]) -> UUID | None:
    """Check the numbers of the first line; returns the id of the exported store.  Raises one of `BAD`."""
    _check_number(header["next_seq"], 1)
    _check_bound(header["next_seq"], _MOST)
    _check_number(header["last_us"], 0)
    _check_bound(header["last_us"], _LATEST_US)
    stated = header["store_id"]
    return None if stated is None else UUID(stated)


def _check_number(value: Any, least: int) -> None:
    """Raise ValueError unless PostgreSQL can hold it as a bigint, in which sequence numbers end up."""
    if type(value) is not int or not least <= value < 1 << 63:
        raise ValueError(f"{value!r:.60} is no number from {least} to 2^63 - 1")


def _check_bound(value: int, most: int) -> None:
    if value > most:
        raise ValueError(f"{value} is more than {most}")


def check_line(line: dict[str, Any]) -> None:
    """Check a line that is neither the first nor the last.  Raises one of `BAD`."""
    kind = line["kind"]
    if kind == "entry":
        record, _ = from_object(line)
        for number in (record.seq, record.group, record.captured_us, record.settled_us):
            _check_number(number, 0)
        _check_bound(record.seq, _MOST)
        if record.group > record.seq:
            raise ValueError(f"entry {record.seq} comes before the first of its group, {record.group}")
        if unpack(record.seq, pack(record)) != record:
            raise ValueError(f"entry {record.seq} does not come back as it is")
        bool(line["owns_key"])
    elif kind == "small":
        if not 0 < len(line["name"].encode()) <= 400:
            raise ValueError(f"{line['name']!r:.60} is no name of a small record")
        _check_number(line["stamp"], 0)
        value = raw_bytes(line["value"])
        small.SmallRecord(line["name"].encode(), value, line["stamp"]).pack()
        _check_shown(line["name"], value)
    elif kind == "other":
        _check_other(raw_bytes(line["name"]), raw_bytes(line["value"]))
    elif kind in REMAINS or kind == "key":
        raw_bytes(line["raw"])
        _check_number(line["seq"], 1)
        for name in ("key", "payload_hash"):
            if line[name] is not None and len(bytes.fromhex(line[name])) != 16:
                raise ValueError(f"{line[name]!r:.60} is no {name}")
    else:
        raise ValueError(f"{kind!r:.60} is no kind of line")


def _check_other(name: bytes, value: bytes) -> None:
    """Raise for what is no record of what PostgreSQL knows of the store."""
    if name in (SESSIONS_KEY, LATE_KEY):
        check_other(name, value)
    elif name.startswith(withdrawal.PREFIX) and len(name) == len(withdrawal.PREFIX) + len(seq_key(1)):
        if value:
            raise ValueError("what was discarded while it was pending has a value")
    elif not name.startswith(ledger.MARK_PREFIX) or len(name) != len(ledger.MARK_PREFIX) + 1:
        raise ValueError(f"{name!r:.60} is no name of ours")
    else:
        check_other(name, value)


def _check_shown(name: str, value: bytes) -> None:
    """Raise for an alarm, a notice or a pause that a status could not show."""
    if name.startswith(ALARM_PREFIX):
        value.decode()
    elif name == PAUSE:
        pause.check(value)
    elif name.startswith(NOTICE_PREFIX) and type(parse({name: value})[name].message) is not str:
        raise ValueError(f"{name!r:.60} is no notice")
