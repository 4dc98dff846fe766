"""The receipts table: which entries are applied, and what their handlers returned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from ..errors import ReceiptsGone, TargetMisconfigured
from ..store.envelope import Record
from .piggyback import tried_in_time
from .transaction_settings import Cursor as Cursor

TABLE = "outbox_receipts"
# Distinguishes our advisory locks from the host's: the ASCII codes of "obx".
LOCK_CLASS = 0x6F6278
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")

_CREATE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    idempotency_key uuid PRIMARY KEY,
    store_id uuid NOT NULL,
    seq bigint NOT NULL,
    operation text NOT NULL,
    payload_hash uuid NOT NULL,
    result json,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)"""

_IS_THERE = "SELECT to_regclass(%s) IS NOT NULL"
_FENCE = "SELECT pg_try_advisory_xact_lock(%s, hashtext(%s))"

_HOLDER = """
SELECT pid, state, wait_event FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND classid = %s AND objid::bigint = hashtext(%s)::bigint & 4294967295"""

_RECORD = f"""
INSERT INTO {TABLE} (idempotency_key, store_id, seq, operation, payload_hash)
SELECT key, %s::uuid, seq, operation, payload
FROM unnest(%s::uuid[], %s::bigint[], %s::text[], %s::uuid[]) AS new (key, seq, operation, payload)
ON CONFLICT (idempotency_key) DO NOTHING RETURNING seq"""

_FIND = f"""
SELECT idempotency_key::text, payload_hash::text, result::text FROM {TABLE}
WHERE idempotency_key = ANY(%s::uuid[])"""

_ANY_LEFT = f"SELECT EXISTS (SELECT FROM {TABLE} WHERE store_id = %s::uuid)"

# An index by store and number, or by payload, would make every delivery write it, for the sake of a rare look at the
# whole table.  So that is read in parts of this many pages (256 MiB), each in time before the statement's timeout.
_PART_PAGES = 1 << 15
_SIZE = """
SELECT pg_relation_size(to_regclass(%s)) / current_setting('block_size')::int,
    current_setting('server_version_num')::int"""
# PostgreSQL reads ranges of pages since this version; before it, each part would be a look at the whole table.
_RANGES_SINCE = 140_000
_HIGHEST = f"SELECT coalesce(max(seq), 0) FROM {TABLE} WHERE store_id = %s::uuid AND "
_COUNTS = f"""
SELECT payload_hash::text, count(*) FROM {TABLE}
WHERE payload_hash IN (SELECT unnest(%s::uuid[])) AND """

_KEEP_RESULTS = f"""
UPDATE {TABLE} AS receipt SET result = new.result
FROM unnest(%s::uuid[], %s::json[]) AS new (key, result) WHERE receipt.idempotency_key = new.key
RETURNING receipt.result IS NOT NULL"""


def fence(cursor: Cursor, name: str) -> bool:
    """Keep other relays of the same store out until the transaction ends; False where one is in."""
    cursor.execute(_FENCE, (LOCK_CLASS, name))
    return bool(cursor.fetchone()[0])


def holder_of_fence(cursor: Cursor, name: str) -> str:
    """The session that keeps this relay out, as far as this role may see; empty where there is none any more."""
    cursor.execute(_HOLDER, (LOCK_CLASS, name))
    found = cursor.fetchone()
    if found is None:
        return ""
    if found[0] is None:
        return ": it was prepared by PREPARE TRANSACTION (see pg_prepared_xacts, and COMMIT PREPARED it)"
    return f": backend {found[0]}, {found[1]}, waits for {found[2]}"


def is_there(cursor: Cursor, name: str = TABLE) -> bool:
    """Whether the role finds a table of ours in its search path."""
    cursor.execute(_IS_THERE, (name,))
    return bool(cursor.fetchone()[0])


def ensure_table(cursor: Cursor, name: str = TABLE, create: str = _CREATE) -> None:
    """Create a table of ours unless it is there; needs no privilege in the latter case."""
    if not is_there(cursor, name):
        # Of two that create it at once, the server refuses one even with IF NOT EXISTS.
        cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (LOCK_CLASS, f"create {name}"))
        cursor.execute(create)


def record(cursor: Cursor, store_id: str, records: Sequence[Record]) -> set[int]:
    """Write receipts; returns the sequence numbers that had none before, whose effects must now be applied."""
    cursor.execute(
        _RECORD,
        (
            store_id,
            _array(item.key.hex() for item in records),
            _array(str(item.seq) for item in records),
            _array(_quoted(item.operation) for item in records),
            _array(item.payload_hash.hex() for item in records),
        ),
    )
    # A host may have taught the driver to read numbers as something else.
    return {int(row[0]) for row in cursor.fetchall()}


def find(cursor: Cursor, records: Sequence[Record]) -> dict[bytes, tuple[bytes, bytes]]:
    """`key -> (payload hash, result)` of the receipts that exist for `records`."""
    cursor.execute(_FIND, (_array(item.key.hex() for item in records),))
    return {
        bytes.fromhex(key.replace("-", "")): (bytes.fromhex(payload.replace("-", "")), (result or "").encode())
        for key, payload, result in cursor.fetchall()
    }


def check_there(cursor: Cursor, store_id: str, applied: Sequence[Record], *, more: bool) -> None:
    """Check that not all receipts of the store are gone.  Raises `ReceiptsGone`.

    `applied` are known to have had one; `more`: others have, too.
    """
    if not (more or applied) or (applied and find(cursor, applied)):
        return
    # Some may have been deleted on purpose; an emptied table has none at all, and is read at once.
    left = tried_in_time(cursor, _ANY_LEFT, store_id)
    if left is not None and not left[0]:
        raise gone("is empty")


def gone(what: str) -> ReceiptsGone:
    """The error for a receipts table that no longer shows which entries are applied."""
    return ReceiptsGone(
        f"table {TABLE} {what}, though this database has taken entries before",
        hint="restore it; or check that nothing is pending and drop outbox_watermarks too",
    )


def parts(cursor: Cursor) -> list[str]:
    """The whole table in parts, as SQL conditions; each is to be read in a transaction of its own.

    A receipt that is there at the first one is found once: it is never moved.
    """
    cursor.execute(_SIZE, (TABLE,))
    pages, version = cursor.fetchone()
    # Of a partitioned table there are no pages.
    begins = [*range(0, max(1, int(pages)), _PART_PAGES)] if int(version) >= _RANGES_SINCE else [0]
    if len(begins) == 1:
        return ["true"]
    bounds = [f"ctid >= '({first},0)'::tid AND ctid < '({first + _PART_PAGES},0)'::tid" for first in begins[:-1]]
    return [*bounds, f"ctid >= '({begins[-1]},0)'::tid"]


def highest_seq(cursor: Cursor, store_id: str, part: str) -> int:
    """The highest sequence number of a store in one of the `parts`."""
    cursor.execute(_HIGHEST + part, (store_id,))
    return int(cursor.fetchone()[0])


def counts(cursor: Cursor, payload_hashes: Iterable[bytes], part: str) -> dict[bytes, int]:
    """How often each of these payloads was applied, by any store, of one of the `parts`."""
    cursor.execute(f"{_COUNTS}{part} GROUP BY payload_hash", (_array({one.hex() for one in payload_hashes}),))
    return {bytes.fromhex(payload.replace("-", "")): int(count) for payload, count in cursor.fetchall()}


def keep_results(cursor: Cursor, results: Sequence[tuple[Record, bytes]]) -> bool:
    """Store what handlers returned in their receipts; False where one was not kept.

    After a lost reply its caller would get None instead.
    """
    keys = _array(item.key.hex() for item, _ in results)
    cursor.execute(_KEEP_RESULTS, (keys, _array(_quoted_text(_in_ascii(result)) for _, result in results)))
    return sum(bool(kept) for (kept,) in cursor.fetchall()) == len(results)


def kept_out(what: str) -> TargetMisconfigured:
    """The error for a receipts table that does not take what is written to it."""
    return TargetMisconfigured(
        what, hint=f"a trigger, a rule or a policy on {TABLE} keeps receipts or results out; take it away"
    )


def _array(elements: Iterable[str]) -> str:
    """An array in PostgreSQL's own text form.

    The driver takes several times as long to write a list, and a host may have taught it to write lists as JSON.
    """
    return "{" + ",".join(elements) + "}"


def text_array(texts: Iterable[str]) -> str:
    """Texts as an array in PostgreSQL's own form."""
    return _array(map(_quoted_text, texts))


@cache
def _quoted(name: str) -> str:
    return _quoted_text(name)


def _in_ascii(result: bytes) -> str:
    """JSON that a database of any encoding can hold."""
    return result.decode() if result.isascii() else _ascii(result)


def _quoted_text(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _ascii(data: bytes) -> str:
    """The same JSON in ASCII."""
    return _NOT_ASCII.sub(lambda found: _escaped(found.group()), data.decode())


def _escaped(text: str) -> str:
    units = text.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
