"""The id reserves of all tables of a manager: filled in the background, shown in the status with how long they last."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, suppress
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from ... import Outbox
from ...errors import ConfigError, StoreBusy
from ...log import Log
from ...words import first_line
from ..manager.away import is_away
from ..manager.manager_connection import fresh_connection
from .id_reserve import IdColumn, IdReserve

_log = Log("outbox.integrations")

_NOTICE = "ids-in-reserve"
_MISSING = "ids-not-reserved"
_USED_UP = "ids-used-up"
# So many are wanted at most where a program makes few.
_FEW = 100
# Below this share of what is wanted the status is degraded.
_SCARCE = 0.2
# The present rate is that of the last hour; a notice that is merely newer is worth a durable write once a minute.
_RATE_S = 3600.0
_SHOW_S = 60.0
_RETRY_S = 60.0
# Statements that define more than the tables that they name.
_OF_MANY = re.compile(r"\b(SCHEMA|DATABASE|SEQUENCE|OWNED)\b", re.IGNORECASE)


class IdReserves:
    """The reserves of several tables.  Thread-safe; one thread tends them."""

    def __init__(
        self, outbox: Outbox, columns: Iterable[tuple[str | None, ...]], few: Collection[tuple[str | None, ...]] = ()
    ) -> None:
        """`columns`: `(schema, table, column)` of the ids, or `(table, column)`; `few`: those with few rows a day."""
        self._outbox = outbox
        wanted = outbox.config.id_reserve
        # By the names that were given.
        self._reserves = {
            of: IdReserve(
                outbox,
                of.table,
                of.column,
                schema=of.schema,
                wanted=min(wanted, _FEW) if given in few else wanted,
            )
            for given, of in ((given, IdColumn.of(given)) for given in columns)
        }
        # Held while PostgreSQL is asked, and when that failed last, and why.
        self._asking = threading.RLock()
        self._failed: tuple[float, SQLAlchemyError] | None = None
        # After a crash of the server a sequence may have fallen back.
        self._distrusted = True
        # Whether the host has defined tables since, or emptied them.
        self.redefined = False
        # Whether one is low: only taking and filling changes that.
        self._low = self._any_low()
        # When a reserve that could not be filled is tried again: the table may be mended.
        self._retry_at: float | None = None
        self._used: deque[tuple[float, dict[IdColumn, int]]] = deque()
        # When the status was given what is left, and whether that was scarce, and of which columns nothing.
        self._shown: tuple[float, bool, list[str]] = (float("-inf"), False, [])

    def take(self, *names: str | None) -> Any:
        """The next id of a column.  Raises `IdReserveEmpty`, `DurabilityError` or `ConfigError`."""
        return self._taken(self._reserves[IdColumn.of(names)])

    def fill_if_empty(self, *names: str | None, engine: Callable[[], Engine]) -> bool:
        """Fill the reserve of a column where it is empty; whether there are ids now.

        It is so after a burst that was faster than the background work, or if PostgreSQL could not be reached at the
        start.
        """
        reserve = self._reserves[IdColumn.of(names)]
        if reserve.left() or reserve.failure is not None:
            return True
        try:
            self.fill(engine())
        except SQLAlchemyError as exc:
            if not is_away(exc):
                raise
            _log.warning("id reserves could not be filled: %(error)s", error=first_line(exc))
        return reserve.left() > 0

    def are_uuids(self, *names: str | None) -> bool:
        """Whether the ids of a column are UUIDs, as far as is known."""
        return self._reserves[IdColumn.of(names)].is_uuid

    def take_if_any(self, *names: str | None) -> Any:
        """The next id, or None where the column has no reserve or it is empty.  Raises `DurabilityError`."""
        of = IdColumn.of(names)
        reserve = self._reserves.get(of)
        if reserve is None and of.schema is not None:
            # Declared without a schema: a table of that name in another schema has no reserve.
            reserve = self._reserves.get(of._replace(schema=None))
            reserve = reserve if reserve is not None and reserve.schema in (None, of.schema) else None
        return self._taken(reserve) if reserve is not None and reserve.left() else None

    def column_of(self, schema: str | None, table: str) -> str | None:
        """The column of a table whose ids are reserved; None where there is none, or the schema leaves that open.

        None for UUIDs too, which have no order.
        """
        for reserve in self._reserves.values():
            of = reserve.of
            if (
                not reserve.is_uuid
                and of.table == table
                and (schema == of.schema or (schema is not None and schema == reserve.schema))
            ):
                return of.column
        return None

    def _taken(self, reserve: IdReserve) -> Any:
        id_ = reserve.take()
        self._low = self._low or reserve.low
        return id_

    @property
    def low(self) -> bool:
        """Whether one of them should be filled, or its sequence looked at."""
        again = self._retry_at is not None and self._outbox.clock.monotonic() >= self._retry_at
        return self._distrusted or again or self._low

    def _any_low(self) -> bool:
        return any(reserve.low for reserve in self._reserves.values())

    def distrust(self) -> None:
        """PostgreSQL is back after an outage: look at its sequences before the next fill."""
        self._distrusted = True

    def redefine(self, statement: str) -> None:
        """The host has defined tables, or emptied them: it may have begun a sequence of these anew."""
        named = any(reserve.of.table in statement for reserve in self._reserves.values())
        self.redefined |= named or _OF_MANY.search(statement) is not None

    def renew(self, engine: Engine, order: AbstractContextManager[Any], in_use: Callable[[], bool]) -> None:
        """After the host has made or emptied tables: forget the ids of sequences that were begun anew.

        Only where the table is empty, and no call that waits may have a reserved id (`in_use()`, asked within `order`);
        else secure them.  PostgreSQL is asked before `order` is entered.
        """
        self.redefined = False
        try:
            if not in_use():
                self._forget(engine, order, in_use)
            self.secure(engine)
        except SQLAlchemyError:
            # It is tried again at the next call.
            self.redefined = True

    def _forget(self, engine: Engine, order: AbstractContextManager[Any], in_use: Callable[[], bool]) -> None:
        taken, anew = {reserve: reserve.taken for reserve in self._reserves.values()}, list[IdReserve]()
        with self._asking, fresh_connection(engine) as connection:
            connection.commit()
            for reserve in taken:
                with suppress(ConfigError, ProgrammingError):
                    anew += [reserve] if reserve.is_begun_anew(connection) else []
        with order:
            if not in_use():
                for reserve in anew:
                    # Another call may have got one of the ids meanwhile.
                    if reserve.taken == taken[reserve]:
                        reserve.forget()

    def secure(self, engine: Engine) -> None:
        """Set sequences forward that have fallen behind a reserved id.

        Raises `SQLAlchemyError` where PostgreSQL is away.
        """
        self._distrusted = True
        self.fill(engine)

    def fill(self, engine: Engine) -> dict[IdColumn, Exception]:
        """Secure them where they are distrusted, and fill them; returns those that cannot be filled, and why.

        Raises `SQLAlchemyError` where PostgreSQL is away, and `StoreBusy` in the middle of another fill.
        """
        if self._asking._is_owned():  # type: ignore[attr-defined]
            raise StoreBusy(
                "this thread is in the middle of reserving ids",
                hint="nothing was written; a signal handler should set a flag and leave the rest to the program's loop",
            )
        began = self._outbox.clock.monotonic()
        # Ids are kept in the order in which they were fetched.
        with self._asking:
            if self._failed is not None and self._failed[0] > began:
                # A thread has asked in vain meanwhile: a silent server lets each one wait for a time limit.
                raise self._failed[1].with_traceback(None)
            return self._fill(engine)

    def _fill(self, engine: Engine) -> dict[IdColumn, Exception]:
        failed: dict[IdColumn, Exception] = {}
        # A sequence that the host has begun anew is not set forward before its ids are forgotten.
        secure, self._distrusted = self._distrusted and not self.redefined, self._distrusted and self.redefined
        try:
            if secure or any(reserve.missing for reserve in self._reserves.values()):
                with fresh_connection(engine) as connection:
                    # What a listener has set for the connection must outlive a rollback on it.
                    connection.commit()
                    failed = self._fill_on(connection, secure=secure)
            self._low = self._any_low()
        except SQLAlchemyError as exc:
            self._distrusted |= secure
            self._failed = self._outbox.clock.monotonic(), exc
            raise
        self._report(failed)
        return failed

    def _fill_on(self, connection: Connection, *, secure: bool) -> dict[IdColumn, Exception]:
        failed: dict[IdColumn, Exception] = {}
        for reserve in self._reserves.values():
            try:
                if secure:
                    reserve.secure_on(connection)
                reserve.fill_on(connection)
            except (SQLAlchemyError, ConfigError) as exc:
                if is_away(exc):
                    raise
                failed[reserve.of] = exc
        return failed

    def _report(self, failed: dict[IdColumn, Exception]) -> None:
        if not failed:
            self._retry_at = None
            self._outbox.notices.clear(_MISSING)
            return
        message = "; ".join(f"{of}: {first_line(exc)}" for of, exc in failed.items())
        if self._retry_at is None:
            _log.warning("ids cannot be reserved: %(detail)s", detail=message)
        self._retry_at = self._outbox.clock.monotonic() + _RETRY_S
        self._outbox.notices.put(_MISSING, f"ids cannot be reserved: {message}", degraded=True)

    def show(self) -> None:
        """Let the status show what is left and for how long.  Raises `DurabilityError`."""
        now = self._outbox.clock.monotonic()
        reserves = [reserve for reserve in self._reserves.values() if not reserve.is_uuid and reserve.failure is None]
        if not self._used or now - self._used[-1][0] >= _SHOW_S:
            self._used.append((now, {reserve.of: reserve.taken for reserve in reserves}))
        while len(self._used) > 1 and now - self._used[1][0] > _RATE_S:
            self._used.popleft()
        scarce = any(reserve.left() < reserve.wanted * _SCARCE for reserve in reserves)
        empty = [str(reserve.of) for reserve in reserves if not reserve.left()]
        if not reserves or (now - self._shown[0] < _SHOW_S and (scarce, empty) == self._shown[1:]):
            return
        self._shown = (now, scarce, empty)
        lasting = {reserve.of: self._lasts(reserve, now) for reserve in reserves}
        parts = [
            f"{reserve.of} {reserve.left()} of {reserve.wanted}{_for_how_long(lasting[reserve.of])}"
            for reserve in reserves
        ]
        lasts_s = min((one for one in lasting.values() if one is not None), default=None)
        self._outbox.notices.put(_NOTICE, f"ids in reserve: {', '.join(parts)}", degraded=scarce, lasts_s=lasts_s)
        if empty:
            message = f"no id of {', '.join(empty)} is left, and calls that need one are refused: bring PostgreSQL back"
            self._outbox.notices.put(_USED_UP, message, refuses=True)
        else:
            self._outbox.notices.clear(_USED_UP)

    def _lasts(self, reserve: IdReserve, now: float) -> float | None:
        """For how many seconds the ids last at the rate of the last hour; None where none were taken."""
        began, before = self._used[0]
        taken = reserve.taken - before.get(reserve.of, 0)
        # In whole minutes: what does not change costs no durable write.
        return None if taken <= 0 or now <= began else 60.0 * round(reserve.left() / taken * (now - began) / 60)


def _for_how_long(seconds: float | None) -> str:
    if seconds is None:
        return ""
    hours = seconds / 3600
    return f" (about {hours:.0f} h)" if hours >= 2 else f" (about {hours * 60:.0f} min)"
