"""Preparing: turns a call into an entry: binds, rehearses, notes what a replay needs, takes ids, encodes.

What the manager refuses before it turns to the database is found here, before anything is stored.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime
from functools import partial
from typing import Any

from ... import InvalidEntry, Outbox
from ...errors import ConfigError
from ...log import Log
from ...store.writer import refuse_at_the_end
from ..code.answers import asked_by, given_id, given_id_of
from ..code.signatures import arguments
from ..ids.id_reserve import IdReserveEmpty
from ..ids.id_reserves import IdReserves
from ..manager.host import Host, ManagerUnavailable
from ..manager.manager_connection import engine_of
from ..operations import BALANCES, NOTES, ManagerOperation
from ..outage import Outage
from ..plain_data import PLAIN, copied, orders_of, zones_in
from ..preflight.evidence import Evidence
from ..preflight.ways_around import works_in_a_scope
from ..replay.balance import refuse_untold
from ..replay.frozen_clock import making
from ..replay.rehearsal import Rehearsal, rehearse
from ..replay.replay import Replayer
from ..roles import Balance, Order, Position, Session
from ..state import context_state
from ..state.foreseen import Foreseen
from ..state.kept_state import Changes, KeptState
from ..state.noted_state import NotedState
from ..upkeep.keeper import Keeper
from ..view import resumptions
from ..view.explanations import Unknown
from ..view.folds import seen_of
from ..view.local_view import NAMES, LocalView
from ..view.tables_used import MOST
from .block import Block
from .defaults import is_kept_default
from .delivery_waits import DeliveryWaits, PendingAttributes
from .sessions import Sessions
from .stages import BoundCall, EncodedCall, Passed, PreparedCall, RehearsedCall, advanced, in_session

_log = Log("outbox.integrations")


class IdsTaken(Exception):
    """Other calls have taken the ids that were reserved for this one, too: it is to be prepared again."""


class Preparing:
    """Makes entries of the calls of one adapter.  Thread-safe."""

    def __init__(
        self,
        host: Host,
        outbox: Outbox,
        keeper: Keeper,
        replayer: Replayer,
        outage: Outage,
        delivery: DeliveryWaits,
        reserves: IdReserves,
        sessions: Sessions,
        block: Callable[[], Block | None],
        methods: Collection[str],
        pending_attributes: PendingAttributes,
    ) -> None:
        """`block()` is the caller's balance block; `methods` are those whose calls are queued."""
        self._host, self._outbox, self._keeper, self._replayer = host, outbox, keeper, replayer
        self._outage, self._delivery, self._reserves, self._sessions = outage, delivery, reserves, sessions
        self._block, self._pending_attributes = block, pending_attributes
        self._foreseen = Foreseen(host, methods)
        self._learn = partial(host.classes.learn, outbox)
        self._noted = NotedState(host, outbox, methods, self._foreseen, self._learn)

    @property
    def _view(self) -> LocalView:
        return self._keeper.view

    def rehearsed(self, call: BoundCall) -> RehearsedCall:
        """A call, tried on a copy of the manager.  Raises `ConfigError` for what cannot be replayed."""
        # Then nothing can be imported, and the copy would fail with an error that names neither call nor outbox.
        refuse_at_the_end()
        session = self._sessions.of(call)
        rehearsal = self._rehearse(call.operation, call.bound, session)
        return advanced(RehearsedCall, call, rehearsal=rehearsal, session=session)

    def bind(
        self, operation: ManagerOperation, args: tuple[Any, ...], kwargs: dict[str, Any], *, at: datetime | None = None
    ) -> BoundCall:
        """Arguments by name, so that positional and keyword calls are alike, and the defaults of the others.

        Copies: what the caller does to a list or a dict afterwards is not part of the call.  `at`: when it was made.
        Raises `TypeError`, and `UnknownLocally` for an earlier answer that is not known.
        """
        signature, method = self._host.signature(operation.name), self._host.method(operation.name)
        parameters = signature.parameters
        given = arguments(signature, method, args, kwargs)
        call: dict[str, Any] = {}
        for name, value in given.items():
            if parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                call[name] = value
                continue
            # Python allows the name of an argument that it takes by position only.
            clash = value.keys() & ({*parameters, NOTES} - {name})
            if clash:
                raise InvalidEntry(
                    f"{operation.name} got {min(clash)!r} as a further keyword, and that name is taken",
                    hint="give the keyword another name",
                )
            call |= value
        refuse_untold(call, deepest=1)
        copies = {name: value if type(value) in PLAIN else copied(value) for name, value in call.items()}
        objects = {name: value for name, value in call.items() if copies[name] is not value}
        # A signature that was recalled from the store knows only which arguments have a default.
        takers = parameters if method is not None else ()
        defaults = {
            name: parameters[name].default
            for name in takers
            if name not in given and is_kept_default(parameters[name].default)
        }
        bound = operation.of_row(copies, self._replayer.same_row.of)
        return BoundCall(
            operation=operation,
            bound=bound,
            standard=operation.standard(bound),
            defaults=defaults,
            orders=orders_of(bound, parameters),
            passed=Passed(operation.name, objects, copies, operation.sets_id),
            at=at,
        )

    def _rehearse(self, operation: ManagerOperation, bound: Mapping[str, Any], session: int | None) -> Rehearsal:
        """Try a call on a copy of the manager, which may refuse it, up to its first contact with the database."""
        cls = self._host.manager_class
        if self._host.built is None and cls is not None and works_in_a_scope(operation.name, Evidence(cls)):
            # Its constructor has not run to its end, so it is not known whether the scope is the manager's.
            return Rehearsal.skipped()
        try:
            replica = self._host.replica(session_id=session, doubles=True)
            self._host.show_patches(replica, (operation.name,))
            kept = KeptState(replica)
            rehearsal = Rehearsal(kept, self._outbox.clock.now(), is_built=self._host.built is not None)
            with self._replayer.border.rehearsing(rehearsal), self._making_id(operation, replica, rehearsal):
                call = {name: one if type(one) in PLAIN else copied(one) for name, one in bound.items()}
                mocked = self._host.is_mocked
                rehearse(rehearsal, replica, operation.name, call, context=operation.context, mocked=mocked)
        except ManagerUnavailable:
            if self._host.built is not None:
                raise
            return Rehearsal.skipped()
        if self._host.built is None and isinstance(rehearsal.error, AttributeError):
            # Its constructor has not run, and the attributes that it would have set are missing.
            return Rehearsal.skipped()
        if rehearsal.misfit is not None:
            raise ConfigError(
                f"{operation.name} of the manager {rehearsal.misfit}, so it cannot be replayed; nothing was recorded",
                hint="write through self.session_factory() and close the session, or leave the operation out",
            )
        shared = kept.shared_changes()
        if shared:
            names = ", ".join(f"self.{name}" for name in shared)
            raise ConfigError(
                f"{operation.name} of the manager changes {names} before it writes",
                hint="a call may run more than once: count in the manager's own attributes, or after the write",
            )
        return rehearsal

    def _making_id(
        self, operation: ManagerOperation, replica: Any, rehearsal: Rehearsal
    ) -> AbstractContextManager[None]:
        """Let a method that makes the UUID of its row itself make the one that its caller gets in an outage."""
        if not operation.creates or not self._reserves.are_uuids(*operation.id_column):
            return nullcontext()
        rehearsal.uuid = self._outbox.clock.new_id()
        made = iter((rehearsal.uuid,))
        return making(replica, lambda: next(made, None))

    def as_of_now(self, item: RehearsedCall) -> RehearsedCall:
        """The call, rehearsed again where another thread has changed attributes that it changes, or that are noted.

        Its replay finds what is noted, and would refuse what the first rehearsal did not.  The order is held.
        """
        # Before that the manager gets what deliveries have changed.
        outdated = self._outdated()
        built, tries = self._host.built, 0
        found = self._noted.names(item.operation.name)
        # Other threads may go on changing them; what both have changed is merged.
        while built is not None and tries < 100 and not item.rehearsal.still_fits(built, found):
            item = dataclasses.replace(item, rehearsal=self._rehearse(item.operation, item.bound, item.session))
            tries += 1
        return item if outdated == item.outdated else dataclasses.replace(item, outdated=outdated)

    def reserve(self, item: RehearsedCall) -> bool:
        """Ask PostgreSQL for ids, where none are left or the host has begun a sequence anew; whether there are some.

        May take seconds: hold no lock, since a silent PostgreSQL must stop no other call.
        """
        if self._outage.delivers is False:
            return False
        if self._reserves.redefined and self._outage.delivers and self._host.built is not None:
            self._reserves.renew(engine_of(self._host.undoubled()), self._keeper.kept.order, self._has_waiting_calls)
        operation = item.operation
        if not operation.creates or self._given_id(operation, item.bound) is not None:
            return False
        return self._reserves.fill_if_empty(*operation.id_column, engine=lambda: engine_of(self._host.undoubled()))

    def _has_waiting_calls(self) -> bool:
        return not self._delivery.passed(self._delivery.last_seq)

    def prepare(self, item: RehearsedCall, *, final: bool, has_ids: bool = False) -> PreparedCall:
        """Note what the replay needs; `final`: the caller does not wait, so it gets the id that is given here.

        `item` is as of now, and has come to the database.  `has_ids`: `reserve` had ids for it.  Raises `IdsTaken`.
        """
        operation, bound, session, unnumbered = item.operation, item.bound, item.session, None
        self._keeper.meet(session)
        notes: dict[str, Any] = {"session": session, **item.orders}
        if item.defaults:
            notes["defaults"] = item.defaults
        if (zones := zones_in(bound)) is not None:
            notes["zones"] = zones
        changes, foreseen, uncounted = self._note_state(item, notes)
        own, cls = self._host.attributes(), self._host.manager_class
        context = context_state.noted(cls, operation.name, own, self._learn)
        if context.stored:
            notes["context"] = context.stored
        if context.names:
            notes["held"] = context.names
        self._host.decimals = context_state.decimals_noted()
        if self._host.decimals is not None:
            notes["decimals"] = self._host.decimals
        if operation.creates:
            unnumbered = self._note_id(item, notes, final=final, has_ids=has_ids)
            if operation.session is Session.BEGINS:
                notes["session"] = notes["id"]
        if operation.position is Position.OPENS:
            self._sessions.opens("position", notes.get("id"), session)
        elif operation.order is Order.OPENS:
            self._sessions.opens("order", item.standard.get("client_order_id"), session)
        self._note_balance(operation, bound, notes)
        self._note_side_ids(operation, bound, notes)
        # The replay may find what the rehearsal did not: what deliveries change, or what no test has mocked.
        if cls is not None and not (item.outdated or uncounted or self._host.is_mocked):
            notes |= item.rehearsal.noted(cls, operation.name)
        # Before anything is stored: it may run code of the host, whose error must not put a durable call in doubt.
        answer = operation.answer_to(bound, notes)
        return advanced(
            PreparedCall,
            in_session(item, notes["session"]),
            notes=notes,
            changes=changes,
            foreseen=foreseen,
            uncounted=uncounted,
            unnumbered=unnumbered,
            held=context.held,
            local_answer=answer,
        )

    def _note_state(
        self, item: RehearsedCall, notes: dict[str, Any]
    ) -> tuple[Changes, Mapping[str, Any], frozenset[str]]:
        """Note what the manager's attributes held at the call; see `PreparedCall` for what is returned."""
        method, outdated = item.operation.name, item.outdated
        expected = self._foreseen.of(method, {**item.defaults, **item.bound}, self._pending_attributes.stale)
        changed = item.rehearsal.changes.by_name.keys()
        foreseen = {name: one for name, one in expected.items() if name not in changed | outdated}
        uncounted = (changed | expected.keys()) & outdated
        if item.rehearsal.is_skipped:
            uncounted |= self._pending_attributes.by(method) - foreseen.keys()
        changes = item.rehearsal.changes.without(outdated)
        if foreseen:
            notes["foreseen"] = foreseen
        with self._replayer.carried.noting() as seen:
            known = self._host.attributes().items()
            own = {name: value for name, value in known if name not in outdated | uncounted}
            beside = self._noted.beside(method, own, changes, changed)
            unbuilt = {} if self._host.built is not None else {"unbuilt": True}
            if changes or beside or unbuilt:
                found = changes.noted(method, {**beside.early, **beside.read}, beside.parts) | unbuilt
                notes["state"] = found | {"seen": seen, "read": [*beside.read, *beside.parts]}
        return changes, foreseen, frozenset(uncounted)

    def _note_id(
        self, item: RehearsedCall, notes: dict[str, Any], *, final: bool, has_ids: bool
    ) -> IdReserveEmpty | None:
        """Note the id that the row will have.

        None for an exit that finds the reserve used up: PostgreSQL numbers it later, and why there is none is returned.
        Raises `IdReserveEmpty` for anything else, and `IdsTaken` where there were ids.
        """
        operation, bound, finality = item.operation, item.bound, {"final": True} if final else {}
        given = self._given_id(operation, bound)
        if given is not None:
            notes |= {"id": given, "given": True, **finality}
            return None
        kept = item.passed.id_kept(operation.keeps_id)
        if kept is None and operation.session is Session.BEGINS:
            kept = self._resumed(operation, bound)
        if kept is not None:
            notes |= {"id": kept, "resumes": True, **finality}
            return None
        try:
            id_ = item.rehearsal.uuid or self._reserves.take(*operation.id_column)
        except IdReserveEmpty as exc:
            if has_ids:
                raise IdsTaken from exc
            if operation.never_refused is None or not operation.never_refused(item.standard):
                raise
            _log.critical(
                "an exit (%(operation)s) is recorded without an id: %(error)s", operation=operation.name, error=exc
            )
            return exc
        notes |= {"id": id_, **finality}
        return None

    def _given_id(self, operation: ManagerOperation, bound: Mapping[str, Any]) -> Any:
        """The id that the caller has made itself, and that the method gives to the row and returns."""
        cls = self._host.manager_class
        path = None if cls is None else given_id_of(cls, operation.name)
        return None if path is None else given_id(path, bound)

    def _resumed(self, operation: ManagerOperation, bound: Mapping[str, Any]) -> Any:
        """The active session with which the call goes on, as far as was seen, or as the method's code shows."""
        cls, table = self._host.manager_class, operation.id_column.table
        asked = None if cls is None else asked_by(cls, operation.name, table)
        parameters = self._host.signature(operation.name).parameters.keys()
        others = (asked or set()) & (parameters - set(map(operation.own_name, NAMES)))
        # It asks for more than the local view knows of a session.
        return None if others else resumptions.resumed(self._view, operation, bound, likely=asked is not None)

    def _note_balance(self, operation: ManagerOperation, bound: Mapping[str, Any], notes: dict[str, Any]) -> None:
        """What a balance is set to, for what follows in the same block."""
        if operation.balance is Balance.SET:
            with suppress(Unknown):
                new = self._view.learning.balance_after(operation, None, operation.amount_of(bound))
                notes[BALANCES] = {"new": new}

    def _note_side_ids(self, operation: ManagerOperation, bound: Mapping[str, Any], notes: dict[str, Any]) -> None:
        """Take the ids of the rows that the call writes on the side, so that they are final as well."""
        view = self._view
        with view.lock:
            if not view.learning.has_sides(operation):
                return
            sides = view.learning.sides(operation.name, partial(seen_of, view, operation, bound, notes), bound)
        for name, count_ in sides.items():
            ids = [self._reserves.take_if_any(*name.split(".")) for _ in range(min(count_, MOST))]
            if ids and None not in ids:
                notes.setdefault("side", {})[name] = ids

    def _outdated(self) -> frozenset[str]:
        """Attributes that get the changes of earlier calls, also of the same block, only when those are delivered."""
        block = self._block()
        calls = () if block is None else block.calls()
        return frozenset(self._pending_attributes.uncounted().union(*(item.uncounted for item in calls)))

    def encoded(self, item: PreparedCall, hashed: bytes | None, *, is_applied: bool = False) -> EncodedCall:
        """Encode a call as it is now, and let the manager have what it changes.

        `hashed`: its idempotency hash, where its identity was looked up.  `is_applied`: see `apply`.  Raises
        `InvalidEntry`, or `DurabilityError` while the store is halted.
        """
        # What the rehearsal has made of the clock, such as an id, must not be before what the replay will make of it.
        at = item.at or (item.rehearsal.at if item.changes else None)
        ready = self._encode(item, hashed, at)
        if not is_applied:
            self.apply(item)
        lent = self._replayer.carried.give(item.foreseen, behind_seq=self._delivery.last_seq)
        return advanced(EncodedCall, item, hashed=hashed, ready=ready, lent=lent)

    def without_balances(self, item: EncodedCall) -> EncodedCall:
        """The call, encoded once more without the balances that its caller was told: another call may change them."""
        left = {name: note for name, note in item.notes.items() if name != BALANCES}
        item = dataclasses.replace(item, notes=left)
        return dataclasses.replace(item, ready=self._encode(item, item.hashed, None))

    def _encode(self, item: PreparedCall, hashed: bytes | None, at: datetime | None) -> Any:
        args = {**item.bound, NOTES: item.notes}
        try:
            return self._outbox.prepare(item.operation.name, args, at=at, hashed=hashed)
        except InvalidEntry:
            refuse_untold(item.bound)
            # Members of enum classes that are new to the outbox may be all that it refused.
            if not self._host.classes.learn(self._outbox, args):
                raise
            return self._outbox.prepare(item.operation.name, args, at=at, hashed=hashed)

    def apply(self, item: PreparedCall) -> bool:
        """Let the manager have what the rehearsal has changed, where there is one; the order is held.

        A block asks PostgreSQL before it is encoded, and the manager gets the changes before that: another call must
        not count on from the same values meanwhile.
        """
        if self._host.built is None:
            return False
        item.changes.apply(self._host.built)
        return True
