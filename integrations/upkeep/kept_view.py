"""Kept view: the local view as a fold over the store's entries, with its checkpoints in the store.

So it is the same again after a restart in the middle of an outage.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ... import Entry, EntryStatus, Outbox, OutboxError
from ...log import Log
from ...results import decode_result, encode_result
from ..operations import ManagerOperation, call_of, notes_of
from ..replay.looks import Looks
from ..replay.upgrades import upgraded
from ..view import former_learning
from ..view.folds import fold, fold_beside, seen_of
from ..view.former_learning import KEPT_UNDER
from ..view.kept_answers import entries_since, is_whole_since
from ..view.local_view import NOT_SHOWN, LocalView, encoded

_log = Log("outbox.integrations")

_META = "local_view"
# The view is kept after so many entries, a larger one later, and after this time.
_EVERY, _BYTES, _EVERY_S = 250, 1024, 600.0
# A view that is in doubt is not kept until so many entries would have to be folded again at a start, or until the last
# one without a doubt is so old that the entries behind it may be pruned.
_FOLDED_AT_MOST = 20_000
_DOUBTED_S = 3600.0
# So long after a call PostgreSQL may still refuse it.
_REFUSED_WITHIN_S = 60.0
# Where gevent has patched it, another class than that of C.
_RLock: Any = type(threading.RLock())


class SessionBusy(OutboxError):
    """Another thread stays in a balance block of this session for longer than a caller waits; nothing was recorded."""


class OrderLock(_RLock):  # type: ignore[misc]
    """Held while calls become durable and are folded, so that both have one order.  Reentrant; waits have a limit.

    An exception of a signal handler may come at any point, but within no function of C: `__exit__` is one, so that the
    lock is always released.
    """

    def __init__(self, mend: Callable[[], None] = lambda: None, *, limit_s: float = 60.0) -> None:
        """`mend` is called by the next holder after an `interrupted` one, before anything else."""
        super().__init__()
        self._mend, self._limit_s = mend, limit_s
        self.interrupted = False
        self._holder = ""

    def __enter__(self) -> bool:
        nested, called = self._is_owned(), False
        try:
            called = True
            if not self.acquire(timeout=self._limit_s):
                called = False
                raise SessionBusy(
                    f"thread {self._holder!r} has been recording a call for more than {self._limit_s:.0f} s",
                    hint="look at the disk: a write to it does not end",
                )
            self._holder = threading.current_thread().name
            if self.interrupted:
                self._mend()
                self.interrupted = False
        except BaseException:
            # A nested call of `acquire` does not wait, so that it has succeeded.
            if called and (nested or self._is_owned()):
                self.release()
            raise
        return True


class KeptView:
    """Keeps one local view.  Thread-safe."""

    def __init__(
        self,
        outbox: Outbox,
        calls: Mapping[str, ManagerOperation],
        view: LocalView,
        doubt: Callable[[int | None], None],
        looks: Looks,
    ) -> None:
        """`doubt(session)`: what is known of a session is to be taken from PostgreSQL.

        `looks`: where to ask for a look at the replay of an entry whose effect is not known.
        """
        self._outbox, self._calls, self._view, self._doubt, self._looks = outbox, calls, view, doubt, looks
        # Held while a call is made durable and folded, so that both happen in the same order.
        self.order = OrderLock(self._fold_anew)
        # The version of what was learned that is in the store.
        self.learned_version = 0
        self._kept_seq, self._kept_at_s = 0, outbox.clock.monotonic()
        # The entry behind which another checkpoint is due.
        self._due = 0
        # The last view without a doubt, from which the entries since can be folded once more; and an earlier one, in
        # which no call can be refused any more.
        self._set_base(view.snapshot(), settled=True)
        # Session -> the last entry before it was taken from PostgreSQL.
        self._observed: dict[Any, int] = {}
        # The version of what was learned by which the view is folded; -1: it must be folded anew.
        self._folded_with = 0
        # Whether a fold has begun and not ended.
        self._torn = False
        # Sessions of before this run; None behind an outage, when any may have been changed by another writer.
        self._apart: frozenset[int] | None = frozenset()
        view.renew, view.fold = self._renew, self._follow

    def restore(self, carried_over: bytes | None) -> None:
        """Take the last checkpoint and fold the entries since.

        `carried_over`: what another store has learned, for one that has learned nothing.
        """
        learned, stored = self._outbox.store.get_meta(KEPT_UNDER), self._outbox.store.get_meta(_META)
        learning, former = self._view.learning, set[str]()
        if learned is not None:
            former = former_learning.take_over(learning, decode_result(learned))
            self.learned_version = learning.version
        elif carried_over is not None:
            former_learning.take_over(learning, decode_result(carried_over), elsewhere=True)
        learning.code = learning.code or learning.present.versions
        if stored is not None:
            # An earlier version did not compress it.
            data = stored if stored.startswith(b"{") else zlib.decompress(stored)
            self._view.load(data)
            self._set_base(self._view.snapshot(), settled=True)
        self.doubt_former(former)
        self._kept_seq = self._view.seq
        self._due = self._kept_seq + _EVERY
        self._fold_since()
        self._apart = frozenset(self._view.sessions)

    def was_out(self) -> None:
        """PostgreSQL was away or set back: other writers may have been there sooner, or their changes be gone."""
        self._apart = None

    def may_differ(self, session_id: int) -> bool:
        """Whether an outage or a restart lies between what is known of a session and PostgreSQL."""
        return self._apart is None or session_id in self._apart

    def doubt_former(self, methods: Collection[str]) -> None:
        """Doubt what `methods` have made of the view, which have another code now."""
        if methods:
            waiting = self._outbox.store.records("pending", on_damage=lambda *_: None)
            pending = (one.entry(strict=False) for one in waiting if one.seq <= self._view.seq)
            for session in former_learning.doubt(self._view, methods, pending):
                self._doubt(session)
            self.changed()
            # It is kept from which code is learned now.
            self._view.learning.version += 1

    def fold(self, entry: Entry) -> None:
        """Apply one durable call to the view, once."""
        operation = self._calls[entry.operation]
        entry = upgraded(operation, entry)
        call = call_of(entry)
        with self._view.lock:
            if entry.seq <= self._view.seq:
                return
            notes = {**notes_of(entry), "at": entry.captured_at, "seq": entry.seq}
            # Ids that were not noted yet when such calls were new.
            notes.setdefault("side", self._view.learning.taken.get(entry.seq, {}))
            session = notes["session"] = self._home(operation, call, notes.get("session"))
            try:
                if self._view.learning.follows(operation):
                    seen = seen_of(self._view, operation, call, notes)
                    sure = fold(self._view, seen)
                    for other in fold_beside(self._view, seen):
                        self._doubt(other)
                    if self._view.learning.wants(seen, sure=sure):
                        self._looks.want(entry.seq, seen, sure=sure)
                    if not sure:
                        self._doubt(session)
            except Exception:  # noqa: BLE001 - the call is durable, and its caller must not get an error of the view
                _log.error("the local view cannot follow entry %(seq)s", seq=entry.seq, trace=True)
                if session in self._view.sessions:
                    self._view.doubt_all(session, f"{operation.name} could not be followed")
                self._doubt(session)
            self._view.sessions.get(session, {}).pop("foreign", None)
            self._view.seq = entry.seq

    def _follow(self, entry: Entry) -> None:
        """`fold`; all of them once more where a signal handler has ended the last one in its middle."""
        was_torn, self._torn = self._torn, True
        if was_torn:
            self._fold_anew()
        else:
            self.fold(entry)
        self._torn = False

    def refused(self, entry: Entry, session: Any) -> None:
        """Answer nothing of a session as if `entry`, which PostgreSQL refused, had been applied."""
        with self._view.lock:
            if session not in self._view.sessions:
                return
            if self._observed.get(session, -1) >= entry.seq:
                # What PostgreSQL has shown since is without it.
                return
            self._view.doubt_apart(session, f"PostgreSQL refused a call of {entry.operation} that it had followed")
            self.misjudged(entry.seq)

    def misjudged(self, seq: int) -> None:
        """Trust no view that has followed entry `seq`: the next answer is made by folding anew, where it can be."""
        with self._view.lock:
            if seq > self._earlier["seq"]:
                self._folded_with = -1
                if seq <= self._base["seq"]:
                    self._set_base(self._earlier, settled=True)
            else:
                self.changed()
            if seq <= self._kept_seq:
                # What the store has, for a restart, has followed it too.
                self._kept_seq = self._due = min(self._base["seq"], seq) - 1

    def changed(self) -> None:
        """Fold from the present view on: no fold of the entries before gives it.  Its lock is held."""
        self._set_base(self._view.snapshot(), settled=True)

    def _home(self, operation: ManagerOperation, call: Mapping[str, Any], session: Any) -> Any:
        """The session of the row that a call names; it may have been made before the view knew that row."""
        named = operation.standard(call)
        if not operation.names_row or named.get("session_id") is not None:
            return session
        if operation.position is not None:
            found = self._view.session_of_position(operation, named, session)
        else:
            found = self._view.session_of_order(named, session)
        return session if found is None else found

    def observed(self, session_id: Any) -> None:
        """A session was taken from PostgreSQL; the order and the view's lock are held."""
        self._view.learning.version += 1
        self._folded_with = self._view.learning.version
        self._observed[session_id] = self._view.seq
        if self._is_sure():
            self.changed()

    def has_many(self, seq: int) -> bool:
        """Whether so many calls came since the last checkpoint that another one is due, with entry `seq`."""
        return seq >= self._due

    def is_due(self) -> bool:
        """Whether a checkpoint is due."""
        if self._view.learning.version != self.learned_version or not self._kept_seq:
            return True
        last = self._outbox.store.last_seq()
        return last >= self._due or (last > self._kept_seq and self._now_s() - self._kept_at_s >= _EVERY_S)

    def checkpoint(self) -> None:
        """Keep the last view in which nothing was in doubt, and what was learned.  Raises `OutboxError`."""
        with self.order, self._view.lock:
            version = self._view.learning.version
            learned = None if version == self.learned_version else encode_result(self._view.learning.dump())
            # Every call up to here is folded in, and entries of other operations are none of the view's concern.
            self._view.seq = max(self._view.seq, self._outbox.store.last_seq())
            self._due = self._view.seq + _EVERY
            self._kept_at_s, sure = self._now_s(), self._is_sure()
            if sure:
                self._set_base(self._view.snapshot())
            kept = self._base
            if self._view.seq - max(kept["seq"], self._kept_seq) > _FOLDED_AT_MOST or self._is_base_old():
                kept = self._view.snapshot()
        if learned is not None:
            self._outbox.store.put_meta(KEPT_UNDER, learned)
            self.learned_version = version
        seq = kept["seq"]
        if seq > self._kept_seq or (sure and not self._kept_seq):
            data = encoded(kept)
            self._outbox.store.put_meta(_META, zlib.compress(data, 1))
            self._kept_seq, self._due = seq, self._due + len(data) // _BYTES
            with self._view.lock:
                # Entries behind it are folded once more after a restart, with the ids that their replays took.
                taken = self._view.learning.taken
                self._view.learning.taken = {later: ids for later, ids in taken.items() if later > seq}

    def _now_s(self) -> float:
        return self._outbox.clock.monotonic()

    def _is_sure(self) -> bool:
        # What PostgreSQL did not show, or in no form that is understood, no other fold will know.
        return all(
            why == NOT_SHOWN or table in row.get("unshown", ())
            for row in self._view.sessions.values()
            for (table, *_), why in row["doubts"].items()
        )

    def _set_base(self, snapshot: dict[str, Any], *, settled: bool = False) -> None:
        """`settled`: no call in it can be refused any more, or an earlier one would not do instead."""
        now = self._base_at_s = self._now_s()
        self._base = snapshot
        if settled:
            self._earlier = self._next = snapshot
            self._next_at_s = now
        elif now - self._next_at_s > _REFUSED_WITHIN_S:
            self._earlier, self._next, self._next_at_s = self._next, snapshot, now

    def _is_base_old(self) -> bool:
        return self._now_s() - self._base_at_s > min(_DOUBTED_S, self._outbox.config.retention_hours * 1800)

    def catch_up(self) -> None:
        """Fold anew where that is due, for a caller that does not hold the order."""
        if self.order.interrupted:
            with self.order:
                pass

    def _fold_anew(self) -> None:
        """Fold anew what the store has: a signal handler has raised while a call was recorded."""
        self._folded_with = -1
        self._renew()

    def _renew(self) -> bool:
        """Fold anew what was folded before more was learned; whether that was so."""
        if self._folded_with == self._view.learning.version:
            return False
        if not is_whole_since(self._outbox, self._base["seq"]):
            # What is known now is better than what is left of its entries.
            self.changed()
        try:
            self._view.take(self._base)
            self._fold_since()
        except BaseException:
            # Of a signal handler, or of the store: the next holder of the order begins once more.
            self.order.interrupted = True
            raise
        return True

    def _fold_since(self) -> None:
        self._folded_with = self._view.learning.version
        for one in entries_since(self._outbox, self._view.seq):
            if isinstance(one, range):
                self._forget(one)
            elif one.operation in self._calls and one.status is not EntryStatus.FAILED:
                self.fold(one.entry(strict=False))

    def _forget(self, missing: range) -> None:
        """Start anew behind entries that are missing and may have changed what is known."""
        with self._view.lock:
            if self._view.sessions:
                _log.warning(
                    "the local view is read from PostgreSQL again: entries %(first)s to %(last)s came after it was "
                    "kept, and were pruned",
                    first=missing[0],
                    last=missing[-1],
                )
            self._view.sessions.clear()
            self._view.seq = missing[-1]
            self.changed()
