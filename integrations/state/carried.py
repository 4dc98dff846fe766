"""Carried: changes that replays made to attributes reach the manager once, after PostgreSQL has the effect.

A replay runs on a copy, in a batch that may be repeated.  Its changes wait here until PostgreSQL has committed it.

A call that waits has noted the values that it reads.  Deliveries of calls before it may change these: its replay must
find that, too, though the values in its notes are older (`Unseen`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from ... import Entry, EntryStatus, Outbox
from ...errors import EntryNotFound, TargetMisconfigured
from ...records import attributes
from ..code.begun import begun
from ..manager.host import Host
from ..plain_data import all_copied, is_small, is_state, same
from .foreseen import ForeseenChange, behind, changed, correction
from .kept_state import NOT_STATE, Changes, KeptState
from .merging import Change

# Changes are joined where no call has noted a value between them, so that a backlog makes one.
_MOST = 1000


class _Link(NamedTuple):
    """Changes of one attribute by calls of one process.

    `first`, `last`: their sequence numbers; `process`: the first call of the process that made them; `at`: when the
    manager got the last of them.
    """

    first: int
    last: int
    process: int | None
    at: int
    change: Change


class Unseen:
    """The changes that reached the manager, by attribute.  Not thread-safe: needs the lock of `Carried`."""

    def __init__(self, process: int) -> None:
        """`process`: the first call of this process."""
        self._process = process
        self._links: dict[str, deque[_Link]] = {}
        # Counts the calls whose changes the manager got, and the highest count at which a call has noted values.
        self._now = self._noted = 0

    def mark(self) -> dict[str, int]:
        """What a call keeps beside the values that it notes now, for `since`."""
        self._noted = self._now
        return {"process": self._process, "at": self._now}

    def add(self, seq: int, process: int | None, changes: Changes) -> None:
        """The manager gets what call `seq` has changed, or would get it if the process of the call still ran."""
        self._now += 1
        for name, change in changes.by_name.items():
            if not (is_small(change.before) and is_small(change.after)):
                # Each call would hold it twice; notes leave large ones to the delivery.
                self._links.pop(name, None)
                continue
            links = self._links.setdefault(name, deque())
            last, made = links[-1] if links else None, _Link(seq, seq, process, self._now, change)
            goes_on = last is not None and last.process == process and last.last < seq
            # Otherwise the engine has set it between them.
            if last is not None and goes_on and last.at > self._noted and same(last.change.after, change.before):
                is_other = last.change.is_other or change.is_other
                links[-1] = made._replace(first=last.first, change=Change(last.change.before, change.after, is_other))
            else:
                links.append(made)
            if len(links) > _MOST:
                links.popleft()

    def since(self, noted: Mapping[str, Any], names: Collection[str] | None, seq: int) -> Iterator[Changes]:
        """What calls before call `seq` have changed in `names`, or in all, since it noted them, oldest first."""
        seen = noted.get("seen")
        if seen is None:
            return
        # An earlier process, whose calls come before all of this one, has counted for itself.
        at = seen["at"] if seen["process"] == self._process else 0
        made: dict[tuple[int, int], dict[str, Change]] = {}
        for name in [*self._links] if names is None else names:
            for link in self._links.get(name, ()):
                if link.at > at and link.first >= seen["process"] and link.last < seq:
                    made.setdefault((link.first, link.last), {})[name] = link.change
        # Those of one call together: several attributes may hold what it has changed.
        yield from (Changes(made[calls]) for calls in sorted(made))


class Carried:
    """The changes of replays that are not committed yet.  Thread-safe."""

    def __init__(self, host: Host, outbox: Outbox | None) -> None:
        """Without `outbox` the relay's process has no engine, whose manager could receive anything."""
        self._host, self._outbox = host, outbox
        # What the constructor gives the manager's attributes.
        self._first: Mapping[str, Any] = {}
        if outbox is not None:
            host.when_built(self._know_first)
        # Calls of an earlier process changed a manager that is gone.
        self._since = 0 if outbox is None else outbox.store.figures().counters.next_seq
        self._lock = threading.RLock()
        self._waiting: dict[int, Changes] = {}
        # What calls that had noted attributes before did not see of them.
        self._unseen = Unseen(self._since)
        # The process of a call whose changes wait, by its sequence number.
        self._processes: dict[int, int | None] = {}
        # What a call did that raised: an error that it counted, say.
        self._refused: dict[int, Changes] = {}
        # What the manager was given at the calls, by sequence number; and what was wrong with that.
        self._foreseen: dict[int, Mapping[str, Any]] = {}
        self._corrections: dict[int, dict[str, Any]] = {}
        # Attributes that a replay was seen to change behind its contact with the database, by operation.
        self.names: dict[str, set[str]] = {}

    @contextmanager
    def noting(self) -> Iterator[dict[str, int]]:
        """While a call notes attributes, the manager gets no changes; what to keep beside them in its notes."""
        with self._lock:
            yield self._unseen.mark()

    def give(self, changes: Mapping[str, ForeseenChange], *, behind_seq: int) -> Lent:
        """Let the manager have these changes of a call that will be recorded behind entry `behind_seq`."""
        # A delivery in another thread may take back others of the same attribute.
        with self._lock:
            for name, change in changes.items():
                self._host.set(name, changed(self._host.get(name), change))
        return Lent(self, changes, behind_seq)

    def foresee(self, seq: int, changes: Mapping[str, Any]) -> None:
        """The manager has these changes of a call that is not delivered yet."""
        if changes:
            with self._lock:
                self._foreseen[seq] = changes

    def begin(
        self, make: Callable[[], Any], entry: Entry, noted: Mapping[str, Any] | None, foreseen: Collection[str]
    ) -> tuple[Any, KeptState]:
        """A copy of the manager, by `make`, and its state: what it was at the call, after the calls before it."""
        # At once: what the manager gets from another thread meanwhile would be in neither.
        with self._lock:
            self.settle()
            replica = make()
            kept = KeptState(replica)
            if noted and noted.get("unbuilt") and entry.seq < self._since:
                kept.begin_with(self._first)
            names = kept.restore(noted, foreseen) if noted else ()
            for earlier in self._before(entry.seq, noted or {}, names):
                kept.follow(earlier)
            if noted or kept.has_followed:
                kept.begin()
        return replica, kept

    def _know_first(self, manager: Any) -> None:
        own = {name: one for name, one in attributes(manager).items() if is_state(one) and is_small(one)}
        # Calls that were made before it was built have changed these.
        counted = self._host.early.keys() & own.keys()
        own |= {name: one for name, one in begun(type(manager)).items() if name in counted}
        self._first = all_copied({name: one for name, one in own.items() if name not in NOT_STATE})

    def _before(self, seq: int, noted: Mapping[str, Any], names: Collection[str]) -> Iterator[Changes]:
        """What calls before call `seq` have changed since it noted `names`, oldest first."""
        own = seq >= self._since
        # The manager of an earlier process is gone, but for what its calls have noted.  If the constructor had not run
        # when they were made, a call found its first values, with what the calls of that process have changed since.
        wanted = None if own or noted.get("unbuilt") else names
        yield from self._unseen.since(noted, names if own else wanted, seq)
        first = self._since if own else noted.get("seen", {}).get("process", 0)
        for earlier in sorted(self._waiting):
            if first <= earlier < seq:
                yield self._waiting[earlier] if wanted is None else self._waiting[earlier].of(wanted)

    def end(self, kept: KeptState, entry: Entry, foreseen: Mapping[str, Any]) -> None:
        """Keep what the replay changed.  Raises `TargetMisconfigured` for what cannot be carried over."""
        changes = kept.later_changes()
        wrong: dict[str, Any] = {}
        for name, expected in foreseen.items():
            change = changes.by_name.get(name)
            wrong[name] = correction(expected, None if change is None else (change.before, change.after))
        wrong = {name: one for name, one in wrong.items() if one is not None}
        changes = Changes({name: change for name, change in changes.by_name.items() if name not in foreseen})
        for name, change in changes.by_name.items():
            if _is_open(change.after):
                raise _unkept(entry, name, "keeps a session there", "open a session for each call")
            if self._outbox is None:
                hint = "let the engine's own process deliver (wire with relay_here=True)"
                raise _unkept(entry, name, "changes it after its write", hint)
        with self._lock:
            self._waiting.pop(entry.seq, None)
            self._refused.pop(entry.seq, None)
            self._corrections.pop(entry.seq, None)
            if wrong and entry.seq in self._foreseen:
                self._corrections[entry.seq] = wrong
            if changes:
                self._waiting[entry.seq] = changes
                self._processes[entry.seq] = self._since if entry.seq >= self._since else kept.process
            if changes and entry.seq >= self._since:
                self.names.setdefault(entry.operation, set()).update(kept.changed_after_contact(changes))

    def drop(self, entry: Entry, kept: KeptState | None, foreseen: Collection[str]) -> None:
        """The replay failed; if the call is refused for that, the manager gets what it did until then."""
        changes = {} if kept is None or entry.seq < self._since else kept.later_changes().by_name
        own = {name: one for name, one in changes.items() if name not in foreseen and not _is_open(one.after)}
        with self._lock:
            self._waiting.pop(entry.seq, None)
            self._corrections.pop(entry.seq, None)
            if own:
                self._refused[entry.seq] = Changes(own)

    def settle(self) -> None:
        """Let the manager have what is committed or refused, oldest first."""
        if self._outbox is None or self._host.built is None or not (self._waiting or self._refused or self._foreseen):
            return
        if self._outbox.store.forked:
            return  # the calls are the parent's, and a thread of it may have held the lock
        manager = self._host.built
        with self._lock:
            # Attributes are read often, and a long outage keeps many calls waiting.
            oldest = [next(iter(kept)) for kept in (self._waiting, self._refused, self._foreseen) if kept]
            if not oldest or not has_arrived(self._outbox, min(oldest)):
                return
            for seq in sorted({*self._waiting, *self._refused, *self._foreseen}):
                if not has_arrived(self._outbox, seq):
                    break
                changes, foreseen = self._waiting.pop(seq, None), self._foreseen.pop(seq, {})
                process = self._processes.pop(seq, self._since)
                corrections, refused = self._corrections.pop(seq, {}), self._refused.pop(seq, None)
                if not self._is_completed(seq):
                    changes = refused
                    corrections = {name: correction(expected, None) for name, expected in foreseen.items()}
                if changes is not None:
                    self._unseen.add(seq, process, changes)
                if changes is not None and seq >= self._since:
                    changes.apply(manager)
                for name in corrections.keys() & foreseen.keys():
                    self._correct(name, corrections[name], behind_seq=seq)

    def take_back(self, given: Mapping[str, Any], last_seq: int) -> None:
        """The manager was `given` these changes of a call, made behind entry `last_seq`, that is not recorded."""
        with self._lock:
            for name, change in given.items():
                self._correct(name, correction(change, None), behind_seq=last_seq)

    def _correct(self, name: str, wrong: ForeseenChange | None, *, behind_seq: int) -> None:
        """Correct what a call did to an attribute; behind a later assignment, only what that has replaced."""
        if wrong is None:
            return
        for seq, foreseen in sorted(self._foreseen.items()):
            later = foreseen.get(name) if seq > behind_seq else None
            if isinstance(later, list):
                self._foreseen[seq] = {**foreseen, name: [later[0], changed(later[1], wrong), later[2]]}
                return
            if later is not None:
                wrong = behind(wrong, later)
        self._host.set(name, changed(self._host.get(name), wrong))

    def _is_completed(self, seq: int) -> bool:
        assert self._outbox is not None
        if seq in self._outbox.progress.acknowledged:
            return True
        try:
            return self._outbox.entry(seq).status is EntryStatus.COMPLETED
        except EntryNotFound:
            # Completed without a ledger copy on a full disk, or pruned.
            return True


class Lent:
    """What the manager was given for one call that is not recorded yet."""

    def __init__(self, carried: Carried, changes: Mapping[str, Any], behind_seq: int) -> None:
        self._carried, self._changes, self._behind_seq = carried, changes, behind_seq

    def keep(self, seq: int) -> None:
        """The call is entry `seq`: from now on it is taken back only if PostgreSQL refuses the call."""
        self._carried.foresee(seq, self._changes)
        self._changes = {}

    def take_back(self) -> None:
        """The call is not recorded; may be called twice, and after `keep`."""
        changes, self._changes = self._changes, {}
        self._carried.take_back(changes, self._behind_seq)


def has_arrived(outbox: Outbox, seq: int) -> bool:
    """Whether the relay is done with an entry: PostgreSQL has committed it, or it is settled."""
    return seq in outbox.progress.acknowledged or not outbox.store.is_pending(seq)


def _is_open(value: Any) -> bool:
    return isinstance(value, Session | Connection)


def _unkept(entry: Entry, name: str, what: str, hint: str) -> TargetMisconfigured:
    return TargetMisconfigured(f"{entry.operation} of the manager changes self.{name}: it {what}", hint=hint)
