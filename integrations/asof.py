"""AsOf: a replayed call writes the ids that its caller was given and the times at which it was made.

Managers take ids from sequences and times from the clock, both at the moment of the replay.  Hooks before each flush
and each statement put back what was true at the capture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Insert, event
from sqlalchemy import inspect as inspect_orm
from sqlalchemy.orm import ORMExecuteState, Session

from ..clock import Clock

_INSERT = re.compile(r'\s*INSERT\s+INTO\s+(?:"?\w+"?\.)?"?(\w+)"?', re.IGNORECASE)


class AsOf:
    """The hooks of one replay."""

    def __init__(
        self,
        creates: tuple[str, str],
        notes: Mapping[str, Any],
        captured_at: datetime,
        clock: Clock,
        take_id: Callable[[str, str], int | None],
    ) -> None:
        """`creates`: table and column of the id in `notes`; `captured_at` is aware; the replay begins now."""
        self._creates = creates
        self._notes = notes
        self._captured_at, self._clock, self._began_at = captured_at.astimezone(UTC), clock, clock.now()
        self._take_id = take_id
        self._id_left = notes.get("id")
        self._times = True
        self._made = dict(notes.get("made") or {})

    def keep_times(self) -> None:
        """Let rows have the times of the replay."""
        self._times = False

    def listen(self, session_class: type[Session]) -> None:
        """Work on all sessions of the class."""

        @event.listens_for(session_class, "before_flush")
        def restore(session: Session, *_: Any) -> None:
            for row in session.new:
                self._give_id(row)
                self._restore_text(row)
                self._restore_times(row, new=True)
            for row in session.dirty:
                if session.is_modified(row):
                    self._restore_times(row, new=False)

        @event.listens_for(session_class, "do_orm_execute")
        def insert(state: ORMExecuteState) -> Any:
            values = self._id_for(state.statement)
            if values is None or isinstance(state.parameters, list):
                return None
            if state.parameters:
                return state.invoke_statement(params=values)
            state.statement = state.statement.values(values)  # type: ignore[attr-defined]
            return None

    def _id_for(self, statement: Any) -> dict[str, int] | None:
        """The id for the row of a Core insert that gives none, once."""
        table, column = self._creates
        if self._id_left is None or not isinstance(statement, Insert) or statement.table.name != table:
            return None
        if statement._multi_values or statement.select is not None or column in _given(statement):
            return None
        id_, self._id_left = self._id_left, None
        return {column: id_}

    def goes_without_id(self, statement: str) -> bool:
        """Whether an SQL statement inserts the row of which the caller has the id, without that id."""
        table = self._creates[0]
        found = _INSERT.match(statement) if self._id_left is not None and table else None
        return found is not None and found[1].lower() == table.lower()

    def restore(self, parameters: Any) -> Any:
        """Parameters of a statement, with the time of the capture where one was read from the clock."""
        if isinstance(parameters, Mapping):
            return {name: self.restore(value) for name, value in parameters.items()}
        if isinstance(parameters, list | tuple):
            return type(parameters)(self.restore(value) for value in parameters)
        if self._times and isinstance(parameters, datetime) and (then := self._then(parameters)) is not None:
            return then
        return parameters

    def _give_id(self, row: Any) -> None:
        state = inspect_orm(row)
        table = state.mapper.local_table.name
        keys = state.mapper.primary_key
        if len(keys) != 1 or state.dict.get(state.mapper.get_property_by_column(keys[0]).key) is not None:
            return
        attribute = state.mapper.get_property_by_column(keys[0]).key
        wanted, column = self._creates
        if self._id_left is not None and table == wanted and keys[0].name == column:
            setattr(row, attribute, self._id_left)
            self._id_left = None
            return
        reserved = self._take_id(table, keys[0].name)
        if reserved is not None:
            setattr(row, attribute, reserved)

    def _restore_text(self, row: Any) -> None:
        """Text that the manager made up at the capture, such as a name with the time in it."""
        for name, value in self._made.pop(inspect_orm(row).mapper.local_table.name, {}).items():
            setattr(row, name, value)

    def _restore_times(self, row: Any, *, new: bool) -> None:
        state = inspect_orm(row)
        for attribute in state.mapper.column_attrs if self._times else ():
            column = attribute.columns[0]
            if not isinstance(column.type, DateTime):
                continue
            changed = attribute.key in state.dict and bool(state.attrs[attribute.key].history.added)
            if changed:
                value = state.dict[attribute.key]
                if isinstance(value, datetime) and (then := self._then(value)) is not None:
                    setattr(row, attribute.key, then)
            elif (new and (column.default or column.server_default)) or (not new and column.onupdate):
                at = self._captured_at
                setattr(row, attribute.key, at if column.type.timezone else at.replace(tzinfo=None))

    def _then(self, value: datetime) -> datetime | None:
        """The time of the capture for one that was read from the clock during this replay, else None.

        Captures are strictly increasing within a store, so the latest row stays the latest, without ties.
        """
        if value.tzinfo is not None:
            return self._captured_at.astimezone(value.tzinfo) if self._is_now(value) else None
        if self._is_now(value.replace(tzinfo=UTC)):
            return self._captured_at.replace(tzinfo=None)
        # Managers write UTC without a zone; one that writes local time is understood as well.
        return self._captured_at.astimezone().replace(tzinfo=None) if self._is_now(value.astimezone()) else None

    def _is_now(self, value: datetime) -> bool:
        return self._began_at <= value <= self._clock.now()


def _given(statement: Insert) -> set[str]:
    """The names of the columns for which an insert gives values."""
    columns: Any = statement._values or {}
    return {getattr(column, "name", column) for column in columns}
