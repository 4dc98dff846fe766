"""Keeper: the background work of a wrapped manager, so that none of it is done in a trade's time.

It fills the id reserves, checkpoints the local view, and after an outage compares the view with PostgreSQL: what
another writer has changed meanwhile is reported, not papered over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from .. import Entry, EntryStatus, Outbox, OutboxError
from .host import Host
from .id_reserve import IdReserves
from .local_view import LocalView, exact
from .operations import ManagerOperation, call_of, notes_of

_log = logging.getLogger("outbox.integrations")

_META = "local_view"
_CHECKPOINT_EVERY = 250
_PERIOD_S = 5.0


class Keeper:
    """Keeps the local view and the id reserves of one adapter.  Thread-safe; one background thread."""

    def __init__(self, host: Host, outbox: Outbox, calls: Mapping[str, ManagerOperation], reserves: IdReserves) -> None:
        """Restores the view from its checkpoint and the entries since."""
        self._host, self._outbox, self._calls, self._reserves = host, outbox, calls, reserves
        self.view = LocalView()
        # Held while a call is made durable and folded, so that both happen in the same order.
        self.order = threading.RLock()
        self._checkpointed = 0
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._compare = False
        # Sessions of which PostgreSQL has refused something that the view has folded.
        self._doubtful: set[int] = set()
        self._restore()

    def _restore(self) -> None:
        stored = self._outbox.store.get_meta(_META)
        if stored is not None:
            self.view.load(stored)
        self._checkpointed = self.view.seq
        # Entries move from pending to the ledger, never back behind the checkpoint unless requeued.
        for name in ("ledger", "pending"):
            for record in self._outbox.store.records(name, first=self._checkpointed + 1):
                if record.operation in self._calls and record.status is not EntryStatus.FAILED:
                    self.fold(record.entry(strict=False))

    def start(self) -> None:
        """Begin the background work; fills the reserves now if that is possible."""
        self._outbox.progress.on_recovered(self._recovered)
        self._outbox.progress.on_rewound(self._rewound)
        if self._host.built is not None:
            self._tend()
        self._thread = threading.Thread(target=self._run, name="outbox-keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Checkpoint and end the background work; may be called twice."""
        self._outbox.progress.off_recovered(self._recovered)
        self._outbox.progress.off_rewound(self._rewound)
        self._stopped.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_PERIOD_S)
            self._thread = None
            self._try("the local view was not kept", self.checkpoint)

    # -- the view

    def fold(self, entry: Entry) -> None:
        """Apply one durable call to the view."""
        operation = self._calls[entry.operation]
        with self.view.lock:
            notes = {**notes_of(entry), "at": entry.captured_at}
            try:
                if operation.fold is not None:
                    operation.fold(self.view, call_of(entry), notes)
            except Exception:  # noqa: BLE001 - the call is durable, and its caller must not hear of the view's trouble
                _log.exception("the local view cannot follow a call", extra={"seq": entry.seq})
                self.doubt(notes.get("session"))
            self.view.seq = max(self.view.seq, entry.seq)
            due = self.view.seq - self._checkpointed >= _CHECKPOINT_EVERY
        if due or self._reserves.low:
            self._wake.set()

    def checkpoint(self) -> None:
        """Keep the view in the store.  Raises `OutboxError`."""
        with self.order:
            seq, data = self.view.seq, self.view.dump()
        if seq > self._checkpointed or not self._checkpointed:
            self._outbox.store.put_meta(_META, data)
            self._checkpointed = seq

    def doubt(self, session_id: int | None) -> None:
        """PostgreSQL refused a call of this session: the view is taken from there again."""
        if session_id is not None:
            self._doubtful.add(session_id)
            self._wake.set()

    def meet(self, session_id: int | None) -> None:
        """A session is in use: learn of it, if it is new, before the next outage."""
        if session_id is not None and session_id not in self.view.sessions:
            self.doubt(session_id)

    def observe(self, session_id: int | None) -> bool:
        """Take a session's state from PostgreSQL, if nothing is on its way there; whether that was possible.

        Raises `SQLAlchemyError`.
        """
        if session_id is None or self._host.built is None:
            return False
        seq = self.view.seq
        if self._outbox.store.figures().pending:
            return False
        shown = self._shown(session_id)
        with self.order:
            if self.view.seq != seq or self._outbox.store.figures().pending:
                return False
            self.view.observe_session(session_id, **shown)
            self._doubtful.discard(session_id)
        return True

    def _shown(self, session_id: int) -> dict[str, Any]:
        """Balance, open positions and unresolved orders of a session, as PostgreSQL has them, and if it is active."""
        manager = self._host.manager()

        def ask(name: str, default: Any, *args: Any) -> Any:
            method: Callable[..., Any] | None = getattr(manager, name, None)
            return default if method is None else method(*args)

        return {
            "balance": ask("get_current_balance", None, session_id),
            "positions": [dict(row) for row in ask("get_active_positions", [], session_id)],
            "orders": [dict(row) for row in ask("get_unresolved_orders", [], session_id)],
            "active": ask("get_active_session_id", session_id) == session_id,
        }

    def compare(self, session_id: int) -> bool:
        """Compare the view of a session with PostgreSQL, report what differs, and take it over.

        Whether it could be done: not while calls are on their way.  Raises `SQLAlchemyError`.
        """
        seq = self.view.seq
        if self._outbox.store.figures().pending:
            return False
        shown = self._shown(session_id)
        balance = shown["balance"]
        with self.order:
            if self.view.seq != seq or self._outbox.store.figures().pending:
                return False
            known = self.view.sessions.get(session_id)
            differences = []
            if (
                known is not None
                and known["balance"] is not None
                and exact(balance, known["balance"]) != known["balance"]
            ):
                differences.append(f"its balance is {balance} in PostgreSQL and {known['balance']} here")
            here = {id_ for id_, row in self.view.positions.items() if row["session_id"] == session_id}
            there = {row["id"] for row in shown["positions"]}
            if here != there and known is not None:
                differences.append(
                    f"open in PostgreSQL only: {sorted(there - here)}, here only: {sorted(here - there)}"
                )
            self.view.observe_session(session_id, **shown)
        if differences:
            self._report(session_id, "; ".join(differences))
        return True

    def _report(self, session_id: int, differences: str) -> None:
        message = (
            f"after the outage session {session_id} differs from what this program was told: {differences}; "
            "another writer has changed it, or entries became dead letters"
        )
        _log.error("the local view diverged", extra={"session": session_id, "detail": differences})
        self._outbox.alarms.sound(f"diverged-session-{session_id}", message)

    # -- background

    def _recovered(self) -> None:
        self._host.forget_failure()
        self._compare = True
        self._wake.set()

    def _rewound(self) -> None:
        """PostgreSQL was set back: its sequences too, and they would give others the ids that were given out here."""
        self._try("sequences could not be set forward", lambda: self._reserves.secure(self._host.manager().engine))
        self._recovered()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wake.wait(_PERIOD_S)
            self._wake.clear()
            if not self._stopped.is_set():
                self._tend()

    def _tend(self) -> None:
        if self.view.seq - self._checkpointed >= _CHECKPOINT_EVERY or not self._checkpointed:
            self._try("the local view was not kept", self.checkpoint)
        if self._outbox.progress.delivering is False or self._host.built is None:
            return
        if self._reserves.low:
            self._try("id reserves could not be filled", lambda: self._reserves.fill(self._host.manager().engine))
        if not self.view.sessions:
            self._try("the active session could not be looked up", self._adopt)
        if self._compare:
            self._compare = False
            self._try("the local view could not be compared", self._compare_active)
        for session_id in tuple(self._doubtful):
            self._try("the local view could not be renewed", partial(self.observe, session_id))

    def _adopt(self) -> None:
        """Learn of a session that was begun before there was an outbox."""
        find: Callable[[], int | None] | None = getattr(self._host.manager(), "get_active_session_id", None)
        if find is not None:
            self.observe(find())

    def _compare_active(self) -> None:
        for session_id in [id_ for id_, row in self.view.sessions.items() if row["active"]]:
            self._compare |= session_id not in self._doubtful and not self.compare(session_id)

    def _try(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except (SQLAlchemyError, OutboxError) as exc:
            _log.warning(what, extra={"error": str(exc)})
        except Exception:  # noqa: BLE001 - a manager of another shape must not end the background work
            _log.exception(what)
