"""AsOf: makes a replayed call write the ids that its caller got, and the times of the original call.

Managers take ids from sequences and times from the clock, both at the moment of the replay.  Hooks before each flush
and each statement give the ids, and put the time of the call where PostgreSQL would read its clock.  What the manager
reads from the clock itself is the business of `frozen_clock`; here is only the second belt for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Column, Connection, Insert, Integer, SmallInteger, Table, TextClause, text
from sqlalchemy import inspect as inspect_orm
from sqlalchemy.orm import Session

from ...clock import Clock
from ..ids.id_reserve import IdColumn, quoted
from ..view.tables_used import MOST
from . import rewritten_sql
from .rewritten_sql import Catalog, InsertText, edited, inserts_in, overriding
from .row_ids import SideIds

# The parameter of an id that SQL text is given.
_GIVEN_ID = "outbox_id"
# Types of values that neither are times nor hold any.
_TIMELESS = frozenset({bool, bytes, Decimal, float, int, str, type(None)})

# Where ids of rows begin that are rolled back.
PASSING_IDS = 2_000_000_000


class AsOf:
    """The hooks of one replay."""

    def __init__(
        self,
        creates: tuple[str | None, ...],
        notes: Mapping[str, Any],
        captured_at: datetime,
        clock: Clock,
        sides: SideIds,
        *,
        call: Any = None,
        passing: Iterator[int] | None = None,
        catalog: Catalog | None = None,
    ) -> None:
        """`creates`: the column of the id in `notes`; `captured_at` is aware; the replay begins now.

        `sides` give ids to further rows.  Times among the arguments in `call` are never taken for those of the clock.
        `passing`: integer ids for rows that are rolled back, so that sequences stay untouched.
        """
        self._creates = IdColumn.of(creates)
        self._captured_at, self._clock, self._began_at = captured_at.astimezone(UTC), clock, clock.now()
        self._captured_naive = self._captured_at.replace(tzinfo=None)
        self._sides, self._passing, self._catalog = sides, passing, catalog or Catalog()
        # The columns that are GENERATED ALWAYS of which ids were given, by table.
        self._given_always: dict[str, str] = {}
        # The id that the caller has, until a row has it; a rollback gives it back.  That of a session that was there
        # already is for no new row.
        self.id_left = None if "resumes" in notes else notes.get("id")
        if "given" in notes:
            # The caller has made it, and it is among the arguments.
            self.id_left = None
        # Whether a method that makes its UUIDs itself has got it.
        self._handed_over = False
        self._times = True
        self._given = frozenset(_times_in(call))
        # The schema_translate_map of the manager's engine.
        self._schemas: Mapping[str | None, str | None] = {}
        self._connection: Connection | None = None
        # By schema, whether the table of the caller's id is there, where that had to be asked.
        self._same: dict[str | None, bool] = {}

    def keep_times(self) -> None:
        """Let rows have the times of the replay."""
        self._times = False

    # -- ids

    def told_uuid(self) -> UUID | None:
        """The id that the caller has, once, for a method that makes the UUID of its row itself."""
        if self._handed_over or not isinstance(self.id_left, UUID):
            return None
        self._handed_over = True
        return self.id_left

    def follow(self, connection: Connection) -> None:
        """The replay goes on `connection`: take schemas of tables for others, as its engine does."""
        self._connection = connection
        self._schemas = connection.get_execution_options().get("schema_translate_map") or {}

    def give_ids(self, session: Session) -> None:
        """Give ids to the new rows of a session that is about to be flushed."""
        for row in session.new:
            self._give_id(row)

    def _give_id(self, row: Any) -> None:
        state = inspect_orm(row)
        keys = state.mapper.primary_key
        table: Any = state.mapper.local_table
        if len(keys) != 1 or not isinstance(table, Table):
            return
        attribute = state.mapper.get_property_by_column(keys[0]).key
        given = state.dict.get(attribute)
        if given is not None:
            if given == self.id_left and self._is_told(table, keys[0]):
                self.id_left = None
            return
        id_ = self._next_id(table, keys[0])
        if id_ is not None:
            setattr(row, attribute, id_)

    def _is_told(self, table: Table, column: Column[Any]) -> bool:
        """Whether the caller has the id of the next row of the table."""
        if self.id_left is None or column.name != self._creates.column or table.name != self._creates.table:
            return False
        return self._is_of(self._schema_of(table))

    def _is_of(self, schema: str | None) -> bool:
        """Whether the table of the caller's id is in `schema`; None is what the search_path leads to."""
        wanted, table = self._schemas.get(self._creates.schema, self._creates.schema), self._creates.table
        if schema == wanted or (schema is not None and wanted is not None):
            return schema == wanted
        if schema not in self._same:
            names = quoted(wanted, table), quoted(schema, table)
            self._same[schema] = (
                self._ask("SELECT coalesce(to_regclass(%s) = to_regclass(%s), true)", names) is not False
            )
        return self._same[schema]

    def _ask(self, question: str, arguments: tuple[Any, ...]) -> Any:
        """One value from PostgreSQL, past the events of the manager's engine; None where there is no connection."""
        if self._connection is None:
            return None
        cursor: Any = self._connection.connection.cursor()
        with cursor:
            cursor.execute(question, arguments)
            return cursor.fetchone()[0]

    def _next_id(self, table: Table, column: Column[Any]) -> Any:
        if self._is_told(table, column):
            id_, self.id_left = self.id_left, None
        else:
            id_ = self._sides(self._schema_of(table), table.name, column.name)
        if id_ is None and self._passing is not None and _takes_any_integer(column):
            id_ = next(self._passing)
        self._note_given(id_, self._schema_of(table), table.name, column.name)
        return _as_column_has_it(column, id_)

    def _note_given(self, id_: Any, schema: str | None, table: str, column: str) -> None:
        """A row of the table gets this id, if any: see `completed`."""
        if isinstance(id_, int) and self._catalog.always.has(schema, table, column, self._ask):
            self._given_always[table.lower()] = column

    def _fetch_id(self, table: Table, column: Column[Any]) -> Any:
        """The next id of PostgreSQL's own, for the further rows of an insert of several; None where it has none."""
        name = quoted(self._schema_of(table), table.name)
        return self._ask("SELECT nextval(pg_get_serial_sequence(%s, %s))", (name, column.name))

    def _with_ids(
        self, statement: Any, parameters: list[dict[str, Any]], table: Table, given: set[str]
    ) -> tuple[Any, list[dict[str, Any]]]:
        """An insert that gives no ids, with those that its rows are to have; `given` gets the column's key."""
        column = self._numbered(table)
        if column is None:
            return statement, parameters
        is_told = self._is_told(table, column)
        if column.key in given:
            if is_told:
                self._is_given()
            return statement, parameters
        rows = max(len(parameters), rewritten_sql.count_rows(statement))
        if not is_told and (rows > MOST or self._sides.column_of(self._schema_of(table), table.name) != column.name):
            return statement, parameters
        left, first = self.id_left, self._next_id(table, column)
        if first is None:
            return statement, parameters
        rest = [self._next_id(table, column) or self._fetch_id(table, column) for _ in range(rows - 1)]
        if None in rest:
            self.id_left = left
            return statement, parameters
        given.add(column.key)
        ids = [{column.key: id_} for id_ in (first, *rest)]
        if parameters and not statement._multi_values:
            return statement, [{**row, **id_} for row, id_ in zip(parameters, ids, strict=True)]
        return rewritten_sql.with_values(statement, ids), parameters

    def _schema_of(self, table: Table) -> str | None:
        return self._schemas.get(table.schema, table.schema)

    def _numbered(self, table: Table) -> Column[Any] | None:
        """The column of a table's ids: that of which the caller has one, else its key."""
        keys = list(table.primary_key.columns)
        columns = table.columns if self.id_left is not None and table.name == self._creates.table else ()
        return next((one for one in columns if self._is_told(table, one)), keys[0] if len(keys) == 1 else None)

    def _is_given(self) -> None:
        """The row of which the caller has the id gets one of the method's; another one than it was told is reported."""
        if self._handed_over:
            self.id_left = None

    def completed(self, statement: str, *, many: bool) -> str:
        """SQL text that inserts rows: with the id that its row is to have, and what a default reads from the clock.

        An id is given also where its column is GENERATED ALWAYS.
        """
        inserts, edits = inserts_in(statement), list[tuple[int, str]]()
        for one in inserts:
            values = self._id_for(one, many=many)
            if self._times and self._connection is not None and one.rows_at:
                defaults = self._catalog.clocks.defaults(self._connection.connection, one.name)
                values |= {column: sql for column, sql in defaults.items() if not one.gives(column)}
            edits += one.edits(values) if values else ()
        statement = edited(statement, edits) if edits else statement
        return overriding(statement, self._given_always) if self._given_always else statement

    def _id_for(self, insert: InsertText, *, many: bool) -> dict[str, str]:
        """The id of the row that SQL text inserts, by its column."""
        is_told = self._is_told_text(insert)
        name = self._creates.column if is_told else self._sides.column_of(insert.schema, insert.table)
        if name is None or insert.gives(name) or many or len(insert.rows_at) != 1:
            if is_told and insert.gives(self._creates.column):
                self._is_given()
            return {}
        if is_told:
            id_, self.id_left = self.id_left, None
        else:
            id_ = self._sides(insert.schema, insert.table, name)
        self._note_given(id_, insert.schema, insert.table, name)
        return {} if id_ is None else {name: str(id_) if isinstance(id_, int) else f"'{id_}'"}

    def _text_with_ids(self, statement: TextClause, rows: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
        """SQL text that inserts a row for each of several parameters, with ids of the reserve."""
        found = inserts_in(statement.text) if len(rows) <= MOST else ()
        if len(found) != 1 or len(found[0].rows_at) != 1 or self._is_told_text(found[0]):
            return statement, rows
        (one,) = found
        name = self._sides.column_of(one.schema, one.table)
        if name is None or one.gives(name):
            return statement, rows
        ids = [self._sides(one.schema, one.table, name) for _ in rows]
        if None in ids:
            return statement, rows
        self._note_given(ids[0], one.schema, one.table, name)
        changed = edited(statement.text, one.edits({name: f":{_GIVEN_ID}"}))
        made = text(changed).bindparams(*statement._bindparams.values())
        return made, [{**row, _GIVEN_ID: id_} for row, id_ in zip(rows, ids, strict=True)]

    def goes_without_id(self, statement: str) -> bool:
        """Whether an SQL statement inserts the row of which the caller has the id, without that id."""
        return self.id_left is not None and any(self._is_told_text(one) for one in inserts_in(statement))

    def _is_told_text(self, insert: InsertText) -> bool:
        """Whether the caller has the id of the row that SQL text inserts."""
        if self.id_left is None or not self._creates.table or insert.table != self._creates.table.lower():
            return False
        return self._is_of(insert.schema)

    # -- statements

    def prepare(self, statement: Any, many: Any, one: Any) -> tuple[Any, Any, Any]:
        """A statement of SQLAlchemy's with its parameters, as `before_execute` has them, before it is compiled."""
        if isinstance(statement, TextClause) and len(many) > 1:
            return (*self._text_with_ids(statement, list(many)), one)
        if not isinstance(statement, Insert):
            return statement, many, one
        if statement.select is not None:
            selected = rewritten_sql.selected_with_defaults(statement) if self._times else statement
            return selected, many, one
        parameters = list(many) or ([one] if one else [])
        table = rewritten_sql.table_of_rows(statement)
        if table is None:
            return statement, many, one
        given = rewritten_sql.given(statement, parameters)
        statement, changed = self._with_ids(statement, parameters, table, given)
        if self._times:
            statement = rewritten_sql.with_defaults(statement, table, given)
        if changed is parameters:
            return statement, many, one
        return (statement, changed, {}) if many else (statement, (), changed[0])

    def at_time(self, statement: str) -> str:
        """SQL text that reads the clock of the call instead of the server's."""
        reads_clock = self._times and rewritten_sql.reads_clock(statement)
        return rewritten_sql.at_time(statement, self._captured_at) if reads_clock else statement

    def restore(self, parameters: Any) -> Any:
        """Parameters of a statement, with the time of the capture where one was read from the real clock."""
        if not self._times:
            return parameters
        if isinstance(parameters, Mapping):
            if _TIMELESS.issuperset(map(type, parameters.values())):
                return parameters
            return {
                name: value if type(value) in _TIMELESS else self.restore(value) for name, value in parameters.items()
            }
        if isinstance(parameters, list | tuple):
            return type(parameters)(self.restore(value) for value in parameters)
        if isinstance(parameters, datetime) and parameters not in self._given:
            return self._then(parameters)
        return parameters

    def _then(self, value: datetime) -> datetime:
        """The time of the capture for one that was read from the clock during this replay.

        Captures are strictly increasing within a store, so the latest row stays the latest, without ties.
        """
        if value.tzinfo is not None:
            return self._captured_at.astimezone(value.tzinfo) if self._is_now(value) else value
        if value == self._captured_naive or self._is_now(value.replace(tzinfo=UTC)):
            return self._captured_naive
        # Managers write UTC without a zone; one that writes local time is understood as well.
        return self._captured_at.astimezone().replace(tzinfo=None) if self._is_now(value.astimezone()) else value

    def _is_now(self, value: datetime) -> bool:
        return self._began_at <= value <= self._clock.now()


def _times_in(value: Any) -> Iterator[datetime]:
    if isinstance(value, datetime):
        yield value
    elif isinstance(value, Mapping | list | tuple | set | frozenset):
        for item in value.values() if isinstance(value, Mapping) else value:
            if type(item) not in _TIMELESS:
                yield from _times_in(item)


def _takes_any_integer(column: Column[Any]) -> bool:
    return isinstance(column.type, Integer) and not isinstance(column.type, SmallInteger)


def _as_column_has_it(column: Column[Any], id_: Any) -> Any:
    """A UUID as text, where the column's type has it so."""
    return str(id_) if id_ is not None and column.type.python_type is str else id_
