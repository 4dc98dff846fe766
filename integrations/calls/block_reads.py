"""Block reads: a read in a balance block sees the calls made there before it, as on the plain manager.

They are recorded when the block ends.  So the manager makes the same calls and answers in a transaction that is rolled
back; while PostgreSQL is away, a copy of the local view answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import count
from typing import Any

from sqlalchemy.orm import object_session

from ...clock import Clock
from ...store.envelope import from_us
from ..code.signatures import invoke
from ..manager.away import cannot_take
from ..manager.host import Host
from ..replay.asof import PASSING_IDS, AsOf
from ..replay.balance import rolled_back
from ..replay.frozen_clock import MakeUuid, frozen
from ..replay.replay import CallFailed, Replayer
from ..replay.side_ids import SideIds
from ..replay.writes import Writes
from ..state.kept_state import Changes, KeptState
from ..upkeep.keeper import Keeper
from ..view.folds import fold, fold_beside, seen_of
from ..view.local_view import LocalView
from .block import Block
from .stages import EncodedCall


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
