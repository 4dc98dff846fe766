"""Asked reads: how reads ask the manager: in a balance block, for a comparison, and not again at once after a failure.

A read in a balance block sees the calls made there before it, as on the plain manager.  They are recorded when the
block ends.  So the manager makes the same calls and answers in a transaction that is rolled back; while PostgreSQL is
away, a copy of the local view answers (`BlockReads`).

While PostgreSQL answers a read, the local view's answer is compared with the manager's.  A read that differs behind a
call is not answered in an outage until enough answers have been equal again.  What is known of its session is taken
from PostgreSQL then, as after what another program has changed (`ComparedReads`).

A read that PostgreSQL failed to answer is not asked again at once, since a lock may be long.  In an outage all reads
rest together: a silent server lets each of them wait for the whole time limit of a connection (`RestingReads`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import count
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import object_session

from ... import Outbox
from ...clock import Clock
from ...log import Log, Repeated
from ...store.envelope import from_us
from ..code.signatures import invoke
from ..manager.away import cannot_take, is_unreachable
from ..manager.host import Host
from ..replay.asof import PASSING_IDS, AsOf
from ..replay.balance import rolled_back
from ..replay.border import Writes
from ..replay.frozen_clock import MakeUuid, frozen
from ..replay.replay import CallFailed, Replayer
from ..replay.row_ids import SideIds
from ..state.kept_state import Changes, KeptState
from ..upkeep.keeper import Keeper
from ..view.compared import WAY_BACK, is_equal
from ..view.folds import fold, fold_beside, seen_of
from ..view.local_view import LocalView, UnknownLocally
from ..view.reads import BALANCE, LAST_BALANCE, READ_ORDERS, READ_POSITIONS, Reads
from .block import Block
from .delivery_waits import DeliveryWaits
from .stages import EncodedCall

# A read rests for this many times the wait.
_REST = 5
# The key of what holds for all reads.
_EVERY = ""


class RestingReads:
    """When reads are asked again.  Thread-safe."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        delivers: Callable[[], bool | None],
        acknowledged: Callable[[], frozenset[int]],
    ) -> None:
        """`delivers()`: whether PostgreSQL takes deliveries, as far as a relay knows.

        `acknowledged()`: the entries of its newest batch that PostgreSQL has committed.
        """
        self._monotonic, self._delivers, self._acknowledged = monotonic, delivers, acknowledged
        # By read: until when it rests, and why.
        self._resting: dict[str, tuple[float, SQLAlchemyError]] = {}
        # What was acknowledged when an outage was met, and whether a relay has noticed that.
        self._before: frozenset[int] = frozenset()
        self._noticed = False

    def fails(self, name: str, error: Exception, began_s: float) -> None:
        """A read that began at `began_s` was not answered."""
        if isinstance(error, SQLAlchemyError):
            self._before, self._noticed = self._acknowledged(), self._delivers() is False
            ended_s = self._monotonic()
            self._resting[_EVERY if is_unreachable(error) else name] = ended_s + _REST * (ended_s - began_s), error

    def why(self, name: str) -> SQLAlchemyError | None:
        """The error for which a read rests; None where it is to be asked."""
        for key in (_EVERY, name):
            until_s, error = self._resting.get(key, (0.0, None))
            if error is not None and self._monotonic() < until_s and not (key == _EVERY and self._is_over()):
                return error
        return None

    def _is_over(self) -> bool:
        """Whether a delivery has shown since that PostgreSQL answers again."""
        delivers = self._delivers()
        self._noticed = self._noticed or delivers is False
        return bool(delivers) and (self._noticed or self._acknowledged() != self._before)


_log = Log("outbox.integrations")

# Those about sessions are compared when a session is looked at.
_COMPARED = (BALANCE, LAST_BALANCE, READ_POSITIONS, READ_ORDERS)
# Comparing takes at most this part of the time.
_SHARE = 0.05


class ComparedReads:
    """Compares the answers of one adapter.  Thread-safe."""

    def __init__(self, outbox: Outbox, keeper: Keeper, delivery: DeliveryWaits, reads: Reads) -> None:
        self._clock, self._keeper, self._delivery, self._reads = outbox.clock, keeper, delivery, reads
        self._repeated = Repeated(_log)
        # From when on a read is compared again, monotonic seconds; and the last call before its last equal answer.
        self._due_s: dict[str, float] = {}
        self._equal_seq: dict[str, int] = {}

    def begin(self, name: str) -> int | None:
        """The last call before a read that is to be compared; None for one that is not."""
        read, seq = self._reads.local(name), self._delivery.last_seq
        if read is None or read.standard not in _COMPARED or not self._delivery.passed(seq):
            return None
        if self._keeper.is_comparing:
            return None
        return seq if self._clock.monotonic() >= self._due_s.get(name, 0.0) else None

    def end(
        self,
        name: str,
        seq: int,
        answer: Any,
        signature: inspect.Signature,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        current: Any,
    ) -> None:
        """Compare what the manager has answered after call `seq`, if no other call was made meanwhile."""
        began, view = self._clock.monotonic(), self._keeper.view
        if inspect.isgenerator(answer):
            return
        with self._keeper.kept.order:
            if self._delivery.last_seq != seq or self._keeper.is_comparing:
                return
            try:
                own = self._reads.answer(name, signature, args, kwargs, view, current, self._clock.now())
                equal = is_equal(own, answer)
            except UnknownLocally:
                return
            except Exception as exc:  # noqa: BLE001 - the manager has answered; rows are objects of the host's
                self._repeated.warn(name, "an answer of %(read)s cannot be compared: %(error)s", read=name, error=exc)
                return
            # Where no call was made since, another program has changed what is shown, and no rule was put to the test.
            is_test = self._equal_seq.get(name) != seq
            was_trusted = is_test and self._note(name, equal=equal)
        ended = self._clock.monotonic()
        self._due_s[name] = ended + (ended - began) / _SHARE
        if equal:
            self._equal_seq[name] = seq
            return
        if was_trusted:
            _log.warning("the local view would have answered %(read)s otherwise than the manager", read=name)
        self._keeper.differed(self._reads.session(name, signature, args, kwargs, current))

    def _note(self, name: str, *, equal: bool) -> bool:
        """Take in a comparison; whether the read was answered until now."""
        view = self._keeper.view
        with view.lock:
            compared = view.learning.compared
            was_trusted = compared.distrusted(name) is None
            view.learning.version += compared.note(name, equal=equal)
        return was_trusted

    def check(self, name: str) -> None:
        """Raise `UnknownLocally` for a read whose answers have differed."""
        with self._keeper.view.lock:
            why = self._keeper.view.learning.compared.distrusted(name)
        if why is not None:
            raise UnknownLocally(f"{name} cannot be answered without PostgreSQL: {why}", hint=WAY_BACK)


class WouldWrite(Exception):
    """A method was about to write in a transaction of which nothing stays, or past it, or would go on reading."""

    # Whether that has happened: managers have bare excepts.
    met = False

    def meets(self) -> WouldWrite:
        """It has happened; what to raise."""
        self.met = True
        return self


class BlockReads:
    """Answers reads in the blocks of one adapter.  Thread-safe."""

    def __init__(
        self,
        host: Host,
        keeper: Keeper,
        clock: Clock,
        block: Callable[[], Block | None],
        replayer: Replayer,
    ) -> None:
        """`block()` is the caller's balance block."""
        self._host, self._keeper, self._clock, self._block = host, keeper, clock, block
        self._catalog, self._border, self._writes = replayer.catalog, replayer.border, Writes()

    def calls(self) -> Sequence[EncodedCall]:
        """The calls that are not recorded and that a read of the caller has to see."""
        block = None if self._host.is_mocked else self._block()
        return () if block is None else block.made()

    def view(self) -> LocalView:
        """The local view as the caller has to see it."""
        calls, known = self.calls(), self._keeper.view
        if not calls:
            return known
        view = LocalView(known.shown)

        def fold_calls() -> None:
            view.begin_with(known, {item.session for item in calls})
            for number, item in enumerate(calls, view.seq + 1):
                if item.operation.has_role:
                    notes = {**item.notes, "at": _captured_at(item), "seq": number}
                    seen = seen_of(view, item.operation, item.bound, notes)
                    fold(view, seen)
                    fold_beside(view, seen)

        def renew() -> bool:
            renewed = known.renew()
            if renewed:
                fold_calls()
            return renewed

        view.renew = renew
        fold_calls()
        return view

    def ask(
        self,
        calls: Iterable[EncodedCall],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        session: int | None,
        *,
        may_write: bool = False,
    ) -> Any:
        """What the manager's method `name` answers behind `calls`.

        Raises what the manager raises, `CallFailed` where it refuses one of the calls, and `WouldWrite` for a method
        that `may_write`, and does, or whose answer would go on reading.
        """
        ids, changes, stop = count(PASSING_IDS), list[Changes](), WouldWrite()
        with self._catalog.forgotten_after_failure(), rolled_back(self._host.undoubled()) as transaction:
            for item in calls:
                as_of = AsOf(
                    item.operation.id_column,
                    item.notes,
                    _captured_at(item),
                    self._clock,
                    SideIds(item.notes.get("side")),
                    call=[item.bound, item.defaults],
                    catalog=self._catalog,
                    passing=ids,
                )
                copy = transaction.sets(self._host.replica(session_id=item.session, doubles=True), as_of)
                changes.append(self._make(item, copy, changes, as_of.told_uuid))
            replica = transaction.sets(self._host.replica(session_id=session, doubles=True))
            kept = KeptState(replica)
            _follow(kept, changes)
            if may_write:
                transaction.before_each(partial(self._only_read, stop))
            try:
                # By a connection of its own it would write past the transaction, and unseen.
                with self._border.refusing(stop.meets) if may_write else nullcontext():
                    answer = getattr(replica, name)(*args, **kwargs)
            except Exception:
                if stop.met:
                    raise stop from None
                raise
            if stop.met or (may_write and not _is_whole(answer)):
                raise stop
            if may_write:
                with self._keeper.kept.order:
                    kept.changes().apply(self._host.built)
            return answer

    def _only_read(self, stop: WouldWrite, raw: Any, statement: str) -> None:
        if stop.met or self._writes.may_write(raw, statement):
            raise stop.meets()

    def _make(self, item: EncodedCall, replica: Any, earlier: Iterable[Changes], make_uuid: MakeUuid) -> Changes:
        """Make a call behind those that changed `replica` by `earlier`; what it changes that the manager has not."""
        kept, state = KeptState(replica), item.notes.get("state")
        if state is not None:
            kept.restore(state, item.foreseen)
        _follow(kept, earlier)
        method, call = getattr(replica, item.operation.name), {**item.defaults, **item.bound}
        try:
            with frozen(_captured_at(item), replica, make_uuid), _called(item, method, call):
                pass
        except Exception as exc:
            if cannot_take(exc):
                raise
            raise CallFailed(
                f"{item.operation.name} of the same balance block is refused: {exc}", hint="nothing of it was written"
            ) from exc
        return kept.later_changes().without(item.foreseen)


def _called(item: EncodedCall, method: Any, call: dict[str, Any]) -> AbstractContextManager[Any]:
    """A call as a block, which is empty where its method is a plain one."""
    answer: Any = invoke(method, call)
    return answer if item.operation.context else nullcontext(answer)


def _follow(kept: KeptState, earlier: Iterable[Changes]) -> None:
    for changes in earlier:
        kept.follow(changes)
    kept.begin()


def _is_whole(answer: Any) -> bool:
    """Whether an answer is read from no more, as a generator is, and an ORM object whose session is open."""
    if isinstance(answer, Mapping):
        answer = tuple(answer.values())
    parts = answer if isinstance(answer, list | tuple | set | frozenset) else (answer,)
    return not any(
        isinstance(one, Iterator | AbstractContextManager)
        or (hasattr(one, "_sa_instance_state") and object_session(one) is not None)
        for one in parts
    )


def _captured_at(item: EncodedCall) -> Any:
    return from_us(item.ready[0].captured_us)
