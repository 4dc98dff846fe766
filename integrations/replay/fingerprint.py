"""Fingerprint: digests of the values that a call has made ready when it first turns to the database.

They are those of its new rows, and of the parameters of the statement that it sends.  A rehearsal takes the fingerprint
at the call, the replay takes it again at the same place: whatever a method reads that a replay does not find as it was
(a global, a file, the environment) shows in it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import inspect as inspect_orm
from sqlalchemy.sql.dml import ValuesBase

from ...store.envelope import from_us, to_us
from ..code.code_version import code_version
from ..code.members import class_member
from ..plain_data import is_small
from ..state.noted_state import is_secret

# Further rows of one call are mostly like the first ones.
_MOST_ROWS = 20
_MOST_VALUES = 200
# What cannot be compared, such as an expression or an object.
_UNKNOWN = 0
_NONE, _NAN, _ZERO = 0x6E6F6E65, 0x6E616E21, 0x7A65726F

Digests = dict[str, int]


def of_contact(rows: Iterable[object], statement: Any = None, given: Any = None) -> Digests:
    """The digests by `table.column` and `:parameter`; of further rows with their number.

    `rows` are the new rows of a session.  `statement`: what it executes, `given` the parameters beside it.
    """
    found: Digests = {}
    for number, row in enumerate(rows):
        if number == _MOST_ROWS:
            break
        state = inspect_orm(row, raiseerr=False)
        if state is None:
            continue
        values = state.dict
        for name, attribute in _columns(state.mapper):
            if attribute in values:
                _add(found, name, values[attribute])
    if isinstance(statement, ValuesBase):
        for column, value in (getattr(statement, "_values", None) or {}).items():
            # A value of SQLAlchemy's own: an expression has none.
            _add(found, f"{statement.table}.{getattr(column, 'key', column)}", getattr(value, "value", statement))
    for values in _each(given):
        for key, value in values.items():
            _add(found, f":{key}", value)
    return found


def _each(given: Any) -> Iterator[Mapping[str, Any]]:
    rows = given if isinstance(given, Sequence) and not isinstance(given, (str, bytes)) else (given,)
    for values in rows[:_MOST_ROWS]:
        if isinstance(values, Mapping):
            yield values


@lru_cache(1024)
def _columns(mapper: Any) -> list[tuple[str, str]]:
    return [(f"{mapper.local_table}.{one.columns[0].name}", one.key) for one in mapper.column_attrs]


def _add(found: Digests, name: str, value: Any) -> None:
    if is_secret(name):
        # No file must help to guess it.
        return
    own, number = name, 1
    while own in found:
        number += 1
        own = f"{name} {number}"
    try:
        found[own] = digest(value)
    except Exception:  # noqa: BLE001 - values of the host's classes run code of their own
        found[own] = _UNKNOWN


def digest(value: Any) -> int:
    """32 bits of a value, the same in each process, and for numbers in each type; 0 for what cannot be compared."""
    if value is None:
        return _NONE
    if isinstance(value, Enum):
        return digest(value.value)
    if isinstance(value, str):
        return _of_bytes(b"s" + value.encode("utf-8", "surrogatepass"))
    if isinstance(value, (int, float, Decimal)):
        # Equal numbers of different types have equal hashes, in each process; a NaN is not even equal to itself.
        is_nan = value.is_nan() if isinstance(value, Decimal) else value != value
        return _NAN if is_nan else _of_bytes(hash(value).to_bytes(8, "little", signed=True))
    if isinstance(value, datetime):
        return _of_bytes(b"t" + (value if value.tzinfo is None else value.astimezone(UTC)).isoformat().encode())
    if isinstance(value, (date, time, timedelta, UUID)):
        return _of_bytes(b"o" + str(value).encode())
    if isinstance(value, (bytes, bytearray)):
        return _of_bytes(b"b" + value)
    if isinstance(value, (list, tuple, dict)) and is_small(value, _MOST_VALUES):
        return _of_container(value)
    return _UNKNOWN


def _of_container(value: Any) -> int:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    digests = sorted((str(key), digest(one)) for key, one in pairs)
    return _UNKNOWN if any(one == _UNKNOWN for _, one in digests) else _of_bytes(repr(digests).encode())


def _of_bytes(data: bytes) -> int:
    return zlib.crc32(data) or _ZERO


def stored(found: Digests, code: str, at: datetime) -> bytes:
    """The form in which a call keeps it; `code`: the version of the code that the method runs; `at`: when it began."""
    return struct.pack(f"<q{len(found) + 1}I", to_us(at), _shape(found, code), *found.values())


def rehearsed_at(kept: bytes) -> datetime:
    """When the call began whose fingerprint this is."""
    return from_us(*struct.unpack_from("<q", kept))


def compared(kept: bytes, found: Digests, code: str) -> dict[str, tuple[int, int]]:
    """The digests of each value at the call and now; none where the call ran other code, or had other rows."""
    form = f"<q{len(found) + 1}I"
    if len(kept) != struct.calcsize(form):
        return {}
    _, shape, *digests = struct.unpack(form, kept)
    if shape != _shape(found, code):
        return {}
    pairs = zip(found, digests, found.values(), strict=True)
    return {name: (one, own) for name, one, own in pairs if _UNKNOWN not in (one, own)}


def code_of(cls: type, method: str) -> str:
    """The version of the code that a method of a manager runs."""
    return _code_of(cls, method, class_member(cls, method))


@lru_cache(1024)
def _code_of(cls: type, method: str, _function: Any) -> str:
    return code_version(cls, method)


def _shape(found: Digests, code: str) -> int:
    return zlib.crc32("|".join((code, *found)).encode("utf-8", "surrogatepass"))
