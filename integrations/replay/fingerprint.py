"""Fingerprint: digests of the values that a call has made ready when it first turns to the database.

They are those of its new rows, and of the parameters of the statement that it sends.  A rehearsal takes the fingerprint
at the call, the replay takes it again at the same place: whatever a method reads that a replay does not find as it was
(a global, a file, the environment) shows in it, though nothing in its code need show that it is read.

A random number differs as well, and is no fault.  So a value counts only when it was equal in deliveries that followed
at once, or when the call and the replay have each had one of its own all the time (`LaterValues`).  One that is mostly
equal, such as a flag that is set at random, must have been so for far longer than between two of its differences.
"""

from __future__ import annotations

import json
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from itertools import chain, islice
from typing import Any
from uuid import UUID

from sqlalchemy import inspect as inspect_orm
from sqlalchemy.sql.dml import ValuesBase

from ... import OutboxError
from ...log import Log
from ...store.envelope import from_us, to_us
from ...store.store import Store
from ..code.class_code import remembered
from ..code.code_version import code_version
from ..plain_data import is_small
from ..state.noted_state import is_secret

# Further rows of one call are mostly like the first ones.
_MOST_ROWS = 20
_MOST_VALUES = 200
# A longer text is taken as it is: to sort the words of 4,000 characters takes half a millisecond.
_MOST_CHARS = 4000
_WORDS = re.compile(r"\w+|\W")
# What cannot be compared, such as an expression or an object.
_UNKNOWN = 0
_NONE, _NAN, _ZERO = 0x6E6F6E65, 0x6E616E21, 0x7A65726F

Digests = dict[str, int]


def of_contact(rows: Iterable[object], statement: Any = None, given: Any = None) -> Digests:
    """The digests by `table.column` and `:parameter`; of further rows with their number.

    There is none of what is named like a secret: it could be guessed by it.  `rows` are the new rows of a session;
    `statement` is what it executes, `given` the parameters beside it.
    """
    found: Digests = {}
    for name, value in chain(*_in_rows(rows), _in_statement(statement), _in_parameters(given)):
        own, number = name, 1
        while own in found:
            number += 1
            own = f"{name} {number}"
        try:
            found[own] = digest(value)
        except Exception:  # noqa: BLE001 - values of the host's classes run code of their own
            found[own] = _UNKNOWN
    return found


def _in_rows(rows: Iterable[object]) -> Iterator[list[tuple[str, Any]]]:
    for row in islice(rows, _MOST_ROWS):
        state = inspect_orm(row, raiseerr=False)
        if state is not None:
            values = state.dict
            yield [(name, values[key]) for name, key in _columns(state.mapper) if key in values]


def _in_statement(statement: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(statement, ValuesBase):
        for column, value in (getattr(statement, "_values", None) or {}).items():
            name = getattr(column, "key", column)
            if not is_secret(str(name)):
                # Of an expression there is no value.
                yield f"{statement.table}.{name}", getattr(value, "value", statement)


def _in_parameters(given: Any) -> Iterator[tuple[str, Any]]:
    for values in islice(given, _MOST_ROWS) if isinstance(given, (list, tuple)) else (given,):
        if isinstance(values, Mapping):
            yield from ((f":{name}", value) for name, value in values.items() if not is_secret(str(name)))


@lru_cache(1024)
def _columns(mapper: Any) -> list[tuple[str, str]]:
    found = [(f"{mapper.local_table}.{one.columns[0].name}", one.key) for one in mapper.column_attrs]
    return [(name, key) for name, key in found if not is_secret(name)]


def digest(value: Any) -> int:
    """32 bits of a value, the same in each process, and for numbers in each type; 0 for what cannot be compared."""
    kind: type = type(value)
    of_kind = _BY_TYPE.get(kind) or next((of for one, of in _BY_TYPE.items() if issubclass(kind, one)), None)
    found = None if of_kind is None else of_kind(value)
    return _UNKNOWN if found is None else found or _ZERO


def _of_enum(value: Enum) -> int:
    return digest(value.value)


def _of_text(value: str) -> int:
    # Without the order of its words: that of a set differs from process to process, and may be joined to a text.
    ordered = "\0".join(sorted(_WORDS.findall(value))) if not value.isalnum() and len(value) <= _MOST_CHARS else value
    return zlib.crc32(ordered.encode("utf-8", "surrogatepass"), 1)


def _of_number(value: Any) -> int:
    # Equal numbers of different types have equal hashes, in each process; a NaN is not even equal to itself.
    is_nan = value.is_nan() if isinstance(value, Decimal) else value != value
    return _NAN if is_nan else zlib.crc32(hash(value).to_bytes(8, "little", signed=True), 2)


def _of_moment(value: datetime) -> int:
    known = value if value.tzinfo is None else value.astimezone(UTC)
    # A class of a library may be finer, and shows itself otherwise than the time that is stored with a call.
    parts = (known.year, known.month, known.day, known.hour, known.minute, known.second, known.microsecond)
    return zlib.crc32(repr((*parts, value.tzinfo is None)).encode(), 3)


def _of_duration(value: timedelta) -> int:
    return zlib.crc32(repr((value.days, value.seconds, value.microseconds)).encode(), 4)


def _of_shown(value: Any) -> int:
    return zlib.crc32(str(value).encode(), 4)


def _of_container(value: Any) -> int | None:
    if not is_small(value, _MOST_VALUES):
        return None
    # Without the order of its items, as in a text.
    pairs = value.items() if isinstance(value, dict) else (("", one) for one in value)
    digests = sorted((str(key), digest(one)) for key, one in pairs)
    return None if any(one == _UNKNOWN for _, one in digests) else zlib.crc32(repr(digests).encode(), 5)


def _of_bytes(value: bytes) -> int:
    return zlib.crc32(value, 6)


# In the order in which a class that derives from several of them is taken.
_BY_TYPE: dict[type, Callable[[Any], int | None]] = {
    type(None): lambda _: _NONE,
    Enum: _of_enum,
    str: _of_text,
    int: _of_number,
    float: _of_number,
    Decimal: _of_number,
    datetime: _of_moment,
    timedelta: _of_duration,
    **dict.fromkeys((date, time, UUID), _of_shown),
    **dict.fromkeys((bytes, bytearray), _of_bytes),
    **dict.fromkeys((list, tuple, dict), _of_container),
}


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


@remembered(1024)
def code_of(cls: type, method: str) -> str:
    """The version of the code that a method of a manager runs."""
    return code_version(cls, method)


def _shape(found: Digests, code: str) -> int:
    return zlib.crc32("|".join((code, *found)).encode("utf-8", "surrogatepass"))


_log = Log("outbox.integrations")

_META = "equal_values"
# So many deliveries in a row show what a value is like.
_ENOUGH = 20
# Or so many times as many as were equal before it differed; and at most that many.
_LONGER = 5
_MOST = 2000
# A delivery that follows at once: nothing has changed meanwhile.
AT_ONCE = timedelta(seconds=2)
# A time that the code rounds is the same at both ends of a part of this length, unless it rounds to less.
_ROUNDED_US = 10_000


def is_same_moment(kept: bytes, captured_at: datetime) -> bool:
    """Whether a clock that is rounded showed the same when the call was rehearsed as its replay is shown."""
    one, other = (to_us(time) // _ROUNDED_US for time in (rehearsed_at(kept), captured_at))
    return one == other


class LaterValues:
    """What is known of the values of each operation.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store: Store | None = None
        # By operation: the version of its code, and how many deliveries in a row each value was equal in.
        self._code: dict[str, str] = {}
        self._equal: dict[str, dict[str, int]] = {}
        # By operation and value: how many must be equal, where it has differed behind equal ones.
        self._enough: dict[tuple[str, str], int] = {}
        # By operation and value: the digests of the call and of the replay, which differ, and how often they did so.
        self._apart: dict[tuple[str, str], tuple[tuple[int, int], int]] = {}

    def keep_in(self, store: Store) -> None:
        """Keep in this store which values are equal; takes over those that it has."""
        with self._lock:
            if store is self._store:
                return
            self._store = store
            kept = store.get_meta(_META)
            for operation, (code, names, *more) in (json.loads(kept) if kept else {}).items():
                self._code[operation] = code
                for enough in more:
                    self._enough |= {(operation, name): number for name, number in enough.items()}
                self._equal[operation] = {name: self._enough.get((operation, name), _ENOUGH) for name in names}

    def differing(self, operation: str, kept: bytes, found: Digests, code: str, *, at_once: bool) -> list[str]:
        """The values that an applied call had otherwise than its replay, and that are not otherwise each time.

        `kept`: the fingerprint of the call; `found`: that of the replay; `at_once`: it followed at once.
        """
        with self._lock:
            if self._code.get(operation) != code:
                self._code[operation], self._equal[operation] = code, {}
                self._enough = {key: number for key, number in self._enough.items() if key[0] != operation}
            known, wrong, news = self._equal[operation], list[str](), False
            for name, (one, own) in compared(kept, found, code).items():
                equal, enough = known.get(name, 0), self._enough.get((operation, name), _ENOUGH)
                if one == own:
                    known[name] = min(equal + 1, _MOST)
                    self._apart.pop((operation, name), None)
                    news |= equal + 1 == enough
                    continue
                if not at_once and equal >= enough:
                    wrong.append(name)
                    continue
                longer = min(max(enough, _LONGER * equal), _MOST)
                self._enough[operation, name] = longer
                known[name] = 0
                news |= equal >= enough or longer != enough
                last, times = self._apart.get((operation, name), (None, 0))
                times = times + 1 if last == (one, own) else 1
                self._apart[operation, name] = (one, own), times
                if times == _ENOUGH:
                    wrong.append(name)
            if news:
                self._keep()
            return wrong

    def _learned(self, operation: str) -> tuple[list[str], dict[str, int]]:
        """What is kept: the values that are equal, and of how many deliveries that must be so, where it is unusual."""
        enough = {name: number for (own, name), number in self._enough.items() if own == operation}
        sure = [name for name, equal in self._equal[operation].items() if equal >= enough.get(name, _ENOUGH)]
        return sorted(sure), {name: number for name, number in enough.items() if number > _ENOUGH}

    def _keep(self) -> None:
        if self._store is None:
            return
        found = {operation: (code, *self._learned(operation)) for operation, code in self._code.items()}
        try:
            self._store.put_meta(_META, json.dumps(found).encode(), despite_halt=True)
        except OutboxError as exc:
            _log.error("what is known of the values of calls could not be kept: %(error)s", error=exc)
