"""Kept answers: reads that an outage answers with the manager's last answer, and the age of that.

An answer is stored with the manager's objects, rows, and dicts in their order: see `pack`.  Calls that have changed it
since, or will when they are delivered, are told from the entries behind it (`WaitingWrites`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ... import EntryStatus, InvalidEntry, Outbox, OutboxError
from ...codec import decode, encode
from ...errors import ConfigError
from ...log import Log, Repeated
from ...store.envelope import Record
from ..code.class_code import remembered
from ..code.tables_named import tables_named
from ..manager.host import Host
from .containers import SIMPLE, is_value, put_together, taken_apart
from .local_view import UnknownLocally

if TYPE_CHECKING:
    from ..operations import ManagerOperation


def entries_since(outbox: Outbox, seq: int) -> Iterator[Record | range]:
    """Records behind `seq`, settled or pending, in their order; a range of sequence numbers for those that are missing.

    Missing are entries that were pruned or are damaged, and those that a full disk has left without a ledger copy.
    """
    awaited, last = seq + 1, outbox.store.last_seq()
    # In one order: an entry that is held back may be older than one that is settled.
    for record in outbox.store.records("ledger", "pending", first=awaited, on_damage=lambda *_: None):
        if record.seq > awaited:
            yield range(awaited, record.seq)
        awaited = record.seq + 1
        yield record
    if awaited <= last:
        yield range(awaited, last + 1)


def is_whole_since(outbox: Outbox, seq: int) -> bool:
    """Whether the first entry behind `seq` is still there: pruning takes the oldest first."""
    return not isinstance(next(entries_since(outbox, seq), None), range)


_log = Log("outbox.integrations")

# An answer that has not changed is stored again after this time, so that its age stays about right after a restart.
_AGAIN = timedelta(seconds=5)
# Deeper than this an object holds one that holds it.
_DEEPEST = 12
_LEAF, _KEYS = "=", "{}"
# Before the name of a read in that of its notice.
_NOTICE = "kept:"
_OBJECTS = ("mapped", "named", "row", "row mapping", "mapping")


@dataclass(frozen=True)
class ManagerRead:
    """A read of a manager, declared beside its operations.

    `keep_last`: an outage answers it with the manager's last answer to the same arguments, also after a restart.
    `reads_stale`: it needs no more than what PostgreSQL holds by now, and does not wait for the calls before it.
    `like`: the standard name of the read that it is; the local view answers it in an outage.
    `args`: the manager's name of an argument -> the standard name.

    Raises `ConfigError` for a declaration that contradicts itself.
    """

    name: str
    keep_last: bool = False
    reads_stale: bool = False
    like: str | None = None
    args: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.like is not None and (self.keep_last or self.reads_stale):
            raise ConfigError(
                f"read {self.name!r} is declared like {self.like!r} and with keep_last or reads_stale",
                hint="the local view knows the calls that are not delivered yet: leave keep_last and reads_stale out",
            )
        if len(set(self.args.values())) < len(self.args):
            raise ConfigError(
                f"read {self.name!r} gives two of its arguments one standard name: {self.args}",
                hint="one argument for each standard name",
            )

    @property
    def standard(self) -> str:
        """The standard name of the read."""
        return self.name if self.like is None else self.like

    def standard_name(self, argument: str) -> str:
        """The standard name of one of the manager's arguments."""
        return self.args.get(argument, argument)

    def own_name(self, argument: str) -> str:
        """The manager's name of an argument that is known by its standard name."""
        return next((own for own, standard in self.args.items() if standard == argument), argument)


class KeptAnswers:
    """The last answers of one manager's reads, in the store.  Thread-safe."""

    def __init__(self, outbox: Outbox, met: Callable[[Any], bool] = lambda _: False) -> None:
        """`met(values)`: allows the enum classes of members among values, and whether there are any."""
        self._outbox, self._met = outbox, met
        # Per read and arguments: the encoded answer, when it was stored and confirmed last, and behind which entry.
        self._known: dict[str, tuple[list[str], datetime, datetime, int]] = {}
        # Reads of which the status says that they are answered as before; a process that was killed left that there.
        notices = outbox.store.figures().notices
        self._stale = {name.removeprefix(_NOTICE) for name in notices if name.startswith(_NOTICE)}
        # Reads whose answers were outdated, and since when none was kept again.
        self._outdated: set[str] = set()
        self._repeated = Repeated(_log)

    def keep(self, name: str, call: Mapping[str, Any], answer: Any, seq: int, is_old: Callable[[int], bool]) -> None:
        """Keep what the manager answered now, when `seq` was the last entry.

        `is_old(seq)`: whether a call behind that entry may have changed it.
        """
        key, now = _key(name, call), self._outbox.clock.now()
        try:
            encoded = [part.decode() for part in encode(packed(answer, self._met))]
            before = self._known.get(key)
            stored = now
            same = before is not None and before[0] == encoded and now - before[1] < _AGAIN
            if before is None or not same or is_old(before[3]):
                data = {"at": now.isoformat(), "packed": encoded, "seq": seq, "age": self._age(name)}
                self._outbox.store.put_meta(key, json.dumps(data).encode())
            else:
                stored = before[1]
            self._known[key] = (encoded, stored, now, seq)
            self._outdated.discard(name)
            self._renewed(name)
        except OutboxError as exc:
            self._repeated.warn(
                f"not kept: {name}", "the answer of %(method)s could not be kept: %(error)s", method=name, error=exc
            )
            self._forget(key)

    def last(self, name: str, call: Mapping[str, Any], failure: Exception) -> tuple[Any, int]:
        """The last known answer, and the last entry before it.  Raises `failure` where there is none."""
        key = _key(name, call)
        found = self._known.get(key)
        if found is None:
            stored = self._outbox.store.get_meta(key)
            # One of an earlier version, which is taken anew at the next read, is in another form.
            data = None if stored is None else json.loads(stored)
            if data is None or "packed" not in data:
                raise failure
            if data.get("age", 0) != self._age(name):
                raise UnknownLocally(
                    f"{name} is not known: a call that is not declared may have changed it since the last answer",
                    hint="an outage answers as the manager did last: ask once more after such a call",
                ) from failure
            at = datetime.fromisoformat(data["at"])
            found = self._known[key] = (data["packed"], at, at, data["seq"])
        plain, types = (part.encode() for part in found[0])
        age_s = (self._outbox.clock.now() - found[2]).total_seconds()
        self._repeated.warn(name, "%(method)s is answered as of %(age_s)s s ago", method=name, age_s=round(age_s))
        if name not in self._stale:
            self._stale.add(name)
            self._outbox.notices.put(f"{_NOTICE}{name}", f"{name} is answered as of {found[2]:%Y-%m-%d %H:%M:%S} UTC")
        try:
            return unpacked(decode(plain, types)), found[3]
        except LookupError:
            raise failure from None

    def outdate(self, name: str) -> None:
        """A call that is not queued has changed what was answered.  Raises `OutboxError`."""
        if name not in self._outdated:
            self._outbox.store.put_meta(_age_key(name), str(self._age(name) + 1).encode())
            self._known = {key: one for key, one in self._known.items() if not key.startswith(f"read:{name}:")}
            self._outdated.add(name)

    def _age(self, name: str) -> int:
        """How often the answers of a read were outdated; those of an earlier age are not given."""
        return int(self._outbox.store.get_meta(_age_key(name)) or 0)

    def _forget(self, key: str) -> None:
        """What cannot be kept must not leave an older answer in its place."""
        self._known.pop(key, None)
        try:
            self._outbox.store.put_meta(key, b"null")
        except OutboxError as exc:
            _log.warning("an answer that is kept could not be taken back: %(error)s", error=exc)

    def age_s(self, name: str, call: Mapping[str, Any]) -> float | None:
        """Seconds since the manager gave the answer that is kept; None where none is."""
        found = self._known.get(_key(name, call))
        return None if found is None else (self._outbox.clock.now() - found[2]).total_seconds()

    def _renewed(self, name: str) -> None:
        self._repeated.over(name)
        if name in self._stale:
            self._stale.discard(name)
            self._outbox.notices.clear(f"{_NOTICE}{name}")


def _age_key(name: str) -> str:
    return f"read-age:{name}"


def _key(name: str, call: Mapping[str, Any]) -> str:
    arguments = b"".join(encode({str(key): value for key, value in call.items()}))
    return f"read:{name}:{hashlib.sha256(arguments).hexdigest()[:32]}"


def packed(answer: Any, met: Callable[[Any], bool] = lambda _: False, depth: int = 0) -> list[Any]:
    """An answer in lists and what can be stored as it is.

    `met(values)` gets what may hold members of new enum classes, and returns whether there were any.
    Raises `InvalidEntry`.
    """
    if depth > _DEEPEST:
        raise InvalidEntry(
            f"the answer is nested deeper than {_DEEPEST} levels, or contains itself",
            hint="declare the read without keep_last",
        )
    kind = type(answer)
    if answer is None or kind in SIMPLE:
        return [_LEAF, answer]
    if kind in (list, tuple):
        return [kind.__name__, [packed(one, met, depth + 1) for one in answer]]
    if kind is dict:
        return [_KEYS, [[key, packed(one, met, depth + 1)] for key, one in answer.items()]]
    try:
        encode(answer)
    except InvalidEntry:
        container, values = taken_apart(answer)
        if container[0] in _OBJECTS or dataclasses.is_dataclass(answer) or is_value(container, values, answer):
            return [container, [[name, packed(one, met, depth + 1)] for name, one in values.items()]]
        if not met(answer):
            raise
        encode(answer)
    return [_LEAF, answer]


def unpacked(form: list[Any]) -> Any:
    """The inverse of `packed`.  Raises `LookupError` where a class is not loaded any more."""
    kind, inside = form
    if kind == _LEAF:
        return inside
    if kind in ("list", "tuple"):
        items = [unpacked(one) for one in inside]
        return items if kind == "list" else tuple(items)
    values = {key: unpacked(one) for key, one in inside}
    if kind == _KEYS:
        return values
    made = put_together(kind, values)
    if made is None:
        raise LookupError(f"the class of the answer is not loaded: {kind[1]}")
    return made[0]


_KEPT = 256


class WaitingWrites:
    """The critical calls that wait, and the last one of each operation.  Thread-safe."""

    def __init__(
        self,
        host: Host,
        outbox: Outbox,
        calls: Mapping[str, ManagerOperation],
        seen: Callable[[str], Collection[str] | None] = lambda _: (),
        read: Callable[[str], frozenset[str]] = lambda _: frozenset(),
    ) -> None:
        """`calls`: the operations by name.  Calls of an earlier process are found in the store.

        `seen(operation)`: the tables that its calls were seen to write; None before it was looked.
        `read(name)`: the tables that a read was seen to use.
        """
        self._seen_to_write, self._seen_to_read = seen, read
        self._host, self._outbox = host, outbox
        self._operations = frozenset(name for name, operation in calls.items() if not operation.best_effort)
        self._roles = frozenset(name for name, operation in calls.items() if operation.has_role)
        self._seqs: dict[str, list[int]] = {}
        # How many are kept of each before those that do not wait any more are left out.
        self._most = dict.fromkeys(self._operations, _KEPT)
        # The last call of each operation among those from `_seen_from` on.
        self._last: dict[str, int] = {}
        self._seen_from = outbox.store.figures().counters.next_seq
        # The last entry among those that is missing.
        self._missing = 0
        # A look at earlier calls must not set a later one back.
        self._lock = threading.RLock()
        if self._operations:
            # A damaged one is the relay's to report.
            for record in outbox.store.records("pending", on_damage=lambda *_: None):
                if record.operation in self._operations:
                    self._seqs.setdefault(record.operation, []).append(record.seq)

    def note(self, operation: str, seq: int) -> None:
        """A call of an operation was recorded; calls come one after the other."""
        if operation not in self._operations:
            return
        with self._lock:
            self._last[operation] = seq
        seqs = self._seqs.setdefault(operation, [])
        if len(seqs) >= self._most[operation]:
            seqs = self._seqs[operation] = [one for one in seqs if self._outbox.store.is_pending(one)]
            # In a long outage all of them wait: then it is twice as long until they are looked at again.
            self._most[operation] = max(_KEPT, 2 * len(seqs))
        seqs.append(seq)

    def of(self, read: str, unrecorded: Iterable[tuple[str, str]] = ()) -> tuple[str, str] | None:
        """A waiting call, by operation and place, that may change what `read` answers; None for none.

        It may where both name a table in common, and, for an operation without a role, where the tables of one of them
        cannot be seen: calls with a role come all the time.  `unrecorded` are calls that wait elsewhere.
        """
        for operation, place in unrecorded:
            if operation in self._operations and self.may_change(operation, read):
                return operation, place
        for operation, seqs in tuple(self._seqs.items()):
            waiting = next((seq for seq in reversed(seqs) if self._outbox.store.is_pending(seq)), None)
            if waiting is not None and self.may_change(operation, read):
                return operation, f"entry {waiting}"
        return None

    def since(self, read: str, seq: int) -> tuple[str, int] | None:
        """A call after `seq`, delivered or not, that may have changed what `read` answers; None for none."""
        if seq + 1 < self._seen_from:
            for one in entries_since(self._outbox, seq):
                if isinstance(one, range):
                    self._missing = max(self._missing, one[-1])
                elif one.operation in self._operations and one.status is not EntryStatus.FAILED:
                    with self._lock:
                        self._last[one.operation] = max(one.seq, self._last.get(one.operation, 0))
            self._seen_from = seq + 1
        if self._missing > seq:
            return "an entry that is not in the store any more", self._missing
        later = ((operation, last) for operation, last in tuple(self._last.items()) if last > seq)
        return next((one for one in later if self.may_change(one[0], read)), None)

    def may_show(self, read: str, tables: Collection[str], method: str) -> bool:
        """Whether `read` may show what a method without a declaration has written, into `tables`."""
        cls = self._host.manager_class
        shown = frozenset() if cls is None else self._shown(cls, read)
        return self.may_change(method, read) if not shown or "" in tables else not shown.isdisjoint(tables)

    def show(self, reads: Iterable[str], tables: Collection[str], method: str) -> bool:
        """Whether one of these reads names one of the `tables`; where those are not known, one that `method` names."""
        cls = self._host.manager_class
        if cls is None:
            return False
        tables = _tables(cls, method) if "" in tables else tables
        return any(not self._shown(cls, read).isdisjoint(tables) for read in reads)

    def may_change(self, operation: str, read: str) -> bool:
        """Whether a call of the operation may change what `read` answers, by the tables that both name."""
        cls = self._host.manager_class
        if cls is None:
            return operation not in self._roles
        named, shown, seen = _tables(cls, operation), self._shown(cls, read), self._seen_to_write(operation)
        if seen is not None and not shown.isdisjoint(seen):
            return True
        if named and shown:
            return not named.isdisjoint(shown)
        # A call that was seen to write other tables may have another effect with other arguments.
        return operation not in self._roles or (seen is None and operation in self._operations)

    def _shown(self, cls: type, read: str) -> frozenset[str]:
        """The tables that a read shows: those that its code names, and those that it was seen to use."""
        return _tables(cls, read) | self._seen_to_read(read)


@remembered(256)
def _tables(cls: type, method: str) -> frozenset[str]:
    return tables_named(cls, method)
