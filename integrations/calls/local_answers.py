"""Local answers: results of calls without a delivery, and calls that the local view refuses in an outage.

A balance block yields what the manager's would: the manager is asked in a transaction that is rolled back, or the local
view answers as the manager was seen to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from ... import Outbox
from ..manager.away import cannot_take
from ..manager.host import Host
from ..manager.manager_connection import is_used_up
from ..operations import BALANCES, ManagerOperation
from ..outage import Outage
from ..replay import told_answers
from ..replay.asof import PASSING_IDS, AsOf
from ..replay.balance import Untold, dry_run, kept, learn_yield, tell
from ..replay.rewritten_sql import Catalog
from ..replay.row_ids import SideIds
from ..roles import Session
from ..state.kept_state import KeptState
from ..upkeep.keeper import Keeper
from ..view import checks
from ..view.explanations import Unknown, alike
from ..view.folds import seen_of
from ..view.local_view import LocalView, UnknownLocally
from ..view.rows import ORDERS, POSITIONS
from .asked_reads import BlockReads
from .block import Block
from .delivery_waits import DeliveryWaits
from .stages import PreparedCall, RehearsedCall

# So often a session is looked up that is not known.
_LOOKS = 10


class _Yield(NamedTuple):
    """What a block yields, and the balance before and after its call, where both are known."""

    value: Any
    balances: Mapping[str, Any] | None = None


class LocalAnswers:
    """Answers the calls of one adapter whose delivery no caller awaits.  Thread-safe."""

    def __init__(
        self,
        host: Host,
        outbox: Outbox,
        keeper: Keeper,
        outage: Outage,
        delivery: DeliveryWaits,
        block_reads: BlockReads,
        block: Callable[[], Block | None],
        catalog: Catalog,
        *,
        begins: bool,
    ) -> None:
        """`block()` is the caller's balance block; `begins`: whether a declared method begins sessions."""
        self._host, self._outbox, self._keeper, self._outage, self._delivery = host, outbox, keeper, outage, delivery
        self._block_reads, self._block, self._catalog = block_reads, block, catalog
        self._begins = begins

    @property
    def _view(self) -> LocalView:
        return self._keeper.view

    def cannot_ask(self, item: RehearsedCall) -> bool:
        """Whether the manager was seen to refuse such a call, and cannot be asked since PostgreSQL is away.

        May take seconds: hold no lock.
        """
        limits = self._limits_beyond(item)
        return checks.is_refused(self._view.learning, item.operation, limits) and not self._outage.can_connect()

    def look_up(self, item: RehearsedCall) -> None:
        """Take the session of a call from PostgreSQL where `check` would not know it.

        May take seconds: hold no lock, since a silent PostgreSQL must stop no other call.
        """
        try:
            self._check(item)
        except UnknownLocally:
            with suppress(SQLAlchemyError):
                # Calls of other threads may come between.
                for _ in range(_LOOKS):
                    if not self._outage.delivers or self._keeper.observe(item.session):
                        break
                    if not self._delivery.wait_until_settled():
                        break
        except Exception:  # noqa: BLE001 - it is raised by `check`
            return

    def check(self, item: RehearsedCall) -> tuple[Any] | None:
        """Refuse what the manager was seen to refuse, and an unknown session, while it cannot be asked.

        Raises what the manager was seen to raise, or returns its answer in a tuple of one; None where the call may be
        made.
        """
        self._check(item)
        return checks.refuse(self._view.learning, item.operation, self._limits_beyond(item))

    def _check(self, item: RehearsedCall) -> None:
        operation = item.operation
        call = {**item.standard, "session_id": item.session}
        # Without a method that begins sessions, one that was not seen may be an account that has been there for long.
        in_session = self._begins and (operation.balance is not None or operation.session is Session.ENDS)
        for check in (*operation.checks, *((checks.session_known,) if in_session else ())):
            check(call, self._block_reads.view())

    def _limits_beyond(self, item: RehearsedCall) -> dict[str, str]:
        """The limits beyond which a call is, with what is wrong; none where the manager was not seen to refuse any."""
        with self._view.lock:
            if not checks.refuses(self._view.learning, item.operation):
                return {}
        return self._exceeded(item.operation, item.bound, {"session": item.session})

    def _exceeded(
        self, operation: ManagerOperation, bound: Mapping[str, Any], notes: Mapping[str, Any]
    ) -> dict[str, str]:
        if not operation.has_role:
            return {}
        balance = None
        with suppress(UnknownLocally):
            balance = self._local_balance(notes["session"]) if operation.balance else None
        with self._view.lock:
            # The calls of the same block count: a position that it has opened is open.
            view = self._block_reads.view()
            unknown = view.not_understood(notes["session"], (POSITIONS, ORDERS))
            if unknown and view.renew():
                # As after a call that PostgreSQL has refused just before it went away.
                unknown = view.not_understood(notes["session"], (POSITIONS, ORDERS))
            seen = seen_of(view, operation, bound, notes)
            # A row that is not in the view may be open all the same.
            seen.tables = {name: rows for name, rows in seen.tables.items() if name not in unknown}
            return checks.exceeded(seen, balance, self._view.learning.of_shape(seen))

    def answering(self, item: PreparedCall) -> PreparedCall:
        """Give a call the answer that such calls were seen to get, where its declaration leaves `returns` out."""
        operation = item.operation
        if not operation.as_seen:
            return item
        told = told_answers.applied_answer(self._view.learning, operation, item.local_answer)
        if not told_answers.is_told_already(self._view.learning, operation, told):
            if not item.changes:
                # The answer may show the time of the call.
                item = replace(item, at=item.at or self._outbox.clock.now())
            told = self._as_seen(item, told)
        if alike(told, item.local_answer):
            return item
        notes = {**item.notes, "yielded": kept(told)}
        if isinstance(told, Untold) and "id" in notes:
            notes["untold"] = not told.knows(notes["id"])
        return replace(item, local_answer=told, notes=notes)

    def _as_seen(self, item: PreparedCall, otherwise: Any) -> Any:
        """What such a call was seen to get; `otherwise` where that is not known."""
        operation = item.operation
        notes, old = {**item.notes, "at": item.at or item.rehearsal.at}, None
        if operation.balance is not None and self._block() is None:
            # In a block other calls may change it before.
            with suppress(UnknownLocally):
                old = self._view.balance(item.session)
        with self._view.lock:
            view = self._block_reads.view()
            seen = seen_of(view, operation, item.bound, notes)
            return told_answers.tell(view, seen, old, otherwise)

    def yielded(self, item: PreparedCall, *, online: bool) -> tuple[Any, PreparedCall]:
        """What the block yields: the manager's own answer where it can be asked, else the local view's.

        And the call with that in its notes.
        """
        told = self._asked_or_known(item, online=online)
        found = {BALANCES: told.balances, "yielded": kept(told.value)}
        more = {name: one for name, one in found.items() if one is not None}
        return told.value, replace(item, notes=item.notes | more)

    def _asked_or_known(self, item: PreparedCall, *, online: bool) -> _Yield:
        if online and self._delivery.wait_until_passed() and (asked := self._ask(item)):
            return asked
        known = self._known(item)
        if not isinstance(known.value, Untold):
            return known
        # The first call of its kind: rather wait for the manager than give no answer.
        asked = self._ask(item) if self._delivery.wait_until_passed() else None
        if asked is None:
            return self._known(item, may_ask=False)
        return _Yield(asked.value, asked.balances or known.balances)

    def _known(self, item: PreparedCall, *, may_ask: bool = True) -> _Yield:
        """What the block yields by the local view; raises what the manager was seen to raise.

        `may_ask`: where the view is not sure, it is an `Untold`, since the manager can be asked instead.
        """
        operation, learning = item.operation, self._view.learning
        self.look_up(item)
        self.check(item)
        seen = seen_of(self._view, operation, item.bound, item.notes)
        effect = learning.effect(seen)
        if effect is not None and effect.balance.of(seen.words) is False:
            why = f"{operation.name}: the manager made another balance of it"
            return _Yield(tell(learning, seen, None, why, asked=may_ask))
        try:
            old = self._local_balance(item.session)
            new = learning.balance_after(operation, old, operation.amount_of(item.bound))
        except (UnknownLocally, Unknown) as exc:
            return _Yield(tell(learning, seen, None, str(exc), asked=may_ask))
        return _Yield(tell(learning, seen, old, asked=may_ask), {"old": old, "new": new})

    def _ask(self, item: PreparedCall) -> _Yield | None:
        """What the manager's own block yields now; None where it cannot be asked."""
        if is_used_up(self._host.built):
            return None
        clock = self._outbox.clock
        column = item.operation.id_column
        passing, catalog = count(PASSING_IDS), self._catalog
        as_of = AsOf(column, item.notes, clock.now(), clock, SideIds(), passing=passing, catalog=catalog)
        old = None
        with suppress(UnknownLocally):
            old = self._local_balance(item.session)
        try:
            manager, replica = self._host.undoubled(), self._host.replica(session_id=item.session, doubles=True)
            state = KeptState(replica)
            if "state" in item.notes:
                # The manager has the changes of this call already.
                state.restore(item.notes["state"], item.foreseen)
            told = dry_run(manager, replica, item.operation.name, {**item.defaults, **item.bound}, as_of)
        except Exception as exc:
            if cannot_take(exc):
                return None
            limits = self._exceeded(item.operation, item.bound, item.notes)
            checks.refused(self._view.learning, item.operation, limits, exc)
            raise
        with self._view.lock:
            learn_yield(self._view.learning, seen_of(self._view, item.operation, item.bound, item.notes), told, old)
        with suppress(Unknown):
            new = self._view.learning.balance_after(item.operation, old, item.operation.amount_of(item.bound))
            return _Yield(told, {"old": old, "new": new})
        return _Yield(told)

    def _local_balance(self, session: int | None) -> Any:
        block = self._block()
        for item in reversed(() if block is None else block.calls()):
            if item.session == session and BALANCES in item.notes:
                return item.notes[BALANCES]["new"]
        return self._view.balance(session)
