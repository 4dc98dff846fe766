"""Sessions: which trading session is current, and in which one each call is made.

A call is made in the session that it names, else in that of its position or order, else in the current one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

from ..manager.host import Host
from ..operations import ManagerOperation
from ..roles import Order, Session
from ..view.local_view import LocalView
from .block import Block
from .stages import BoundCall


class Sessions:
    """The trading sessions of one manager, as its calls begin, end and name them.  Thread-safe."""

    def __init__(self, host: Host, view: LocalView, block: Callable[[], Block | None]) -> None:
        """`block()` is the caller's balance block."""
        self._host, self._view, self._block = host, view, block
        self._current: int | None = None
        # The operation that ended the current session, until it is known whether the session stays current.
        self._ended: tuple[str, int | None] | None = None
        self._opened = _Opened()

    @property
    def current(self) -> int | None:
        """The manager's current session, or the one that it would have without the outage."""
        if self._ended is not None:
            name, session = self._ended
            stays = self._view.learning.habits.current.get(name)
            if stays is not None:
                self._ended = None
                if not stays and self._known() == session:
                    self.current = None
        return self._known()

    @current.setter
    def current(self, value: int | None) -> None:
        self._current = value
        self._host.set("_current_session_id", value)

    def _known(self) -> int | None:
        known = self._host.get("_current_session_id", self._current)
        known = self._current if known is None else known
        return self._view.otherwise if known is None else known

    def of(self, made: BoundCall) -> int | None:
        """The session in which a call is made, or None."""
        operation, call = made.operation, made.standard
        session: int | None = call.get("session_id")
        current = self.current
        if session is None and call.get("position_id") is not None:
            session = self._view.session_of_position(operation, call, current)
            session = self._opened.session("position", call["position_id"]) if session is None else session
        if session is not None:
            return session
        if operation.order is Order.UPDATES and operation.position is None:
            session = self._view.session_of_order(call, current)
            session = self._opened.session("order", call.get("client_order_id")) if session is None else session
        if session is None and current is None and operation.names_row:
            # The row may be made in the same block, and is not in the view yet.
            block = self._block()
            return None if block is None else block.session
        return current if session is None else session

    def opens(self, kind: str, id_: Any, session: int | None) -> None:
        """A call opens the position or the order with this id: later calls that name it are made in its session."""
        self._opened.note(kind, id_, session)

    def follow(self, operation: ManagerOperation, session: int | None) -> None:
        """A durable call begins or ends a session: another one is current if the manager was seen to do so."""
        stays = self._view.learning.habits.current.get(operation.name)
        if operation.session is Session.BEGINS and stays is not False:
            self.current = session
        elif operation.session is Session.ENDS and session == self.current:
            self._ended = (operation.name, session)

    def answered(self, begun: Any, answer: Any) -> None:
        """Take in the manager's answer to a call that begins session `begun`: it may have gone on with another one."""
        if begun == self.current and type(answer) is type(begun):
            self.current = answer


class _Opened:
    """The sessions of rows that were opened last, since the view has a row only once it knows what such calls do."""

    _KEPT = 10_000

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._sessions: dict[tuple[str, Any], Any] = {}

    def note(self, kind: str, id_: Any, session: Any) -> None:
        """A call opens a row with this id in this session."""
        if isinstance(id_, int | str | UUID):
            with self._lock:
                self._sessions[kind, id_] = session
                while len(self._sessions) > self._KEPT:
                    del self._sessions[next(iter(self._sessions))]

    def session(self, kind: str, id_: Any) -> Any:
        """The session of a row; None where it is not among the last."""
        return self._sessions.get((kind, id_)) if isinstance(id_, int | str | UUID) else None
