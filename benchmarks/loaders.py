"""The contenders for draining: each brings rows of 25 typed columns into PostgreSQL, in its own usual way.

All but the outbox start from what a program has in memory and keep neither receipts nor a ledger, so they do less.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import psycopg2
from psycopg2.extras import execute_values
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from .workload import wide
from .writers import mapped_class, sqlalchemy_url

_PAGE = 1000

Row = dict[str, Any]


class Loader(Protocol):
    """`prepare` is not timed, `load` is."""

    def prepare(self, url: str, table: str, rows: Sequence[Row]) -> None: ...
    def load(self) -> None: ...
    def close(self) -> None: ...


def _values(row: Row) -> tuple[Any, ...]:
    return tuple(
        json.dumps(value) if isinstance(value, list) else str(value) if type(value).__name__ == "UUID" else value
        for value in row.values()
    )


class Copy:
    """The limit: COPY of text that is ready, one statement, one commit."""

    def prepare(self, url: str, table: str, rows: Sequence[Row]) -> None:
        self._connection = psycopg2.connect(url)
        self._statement = f"COPY {table} ({', '.join(rows[0])}) FROM STDIN"
        self._text = io.StringIO()
        for row in rows:
            cells = (str(value).replace("\\", "\\\\") for value in _values(row))
            self._text.write("\t".join(cells) + "\n")
        self._text.seek(0)

    def load(self) -> None:
        with self._connection.cursor() as cursor:
            cursor.copy_expert(self._statement, self._text)
        self._connection.commit()

    def close(self) -> None:
        self._connection.close()


class _Statements:
    """INSERT with psycopg2; what is timed begins with tuples that are ready."""

    def prepare(self, url: str, table: str, rows: Sequence[Row]) -> None:
        self.connection = psycopg2.connect(url)
        self.table, self.names = table, ", ".join(rows[0])
        self.rows = [_values(row) for row in rows]

    def close(self) -> None:
        self.connection.close()


class RowByRow(_Statements):
    """One INSERT and one COMMIT for each row."""

    def load(self) -> None:
        places = ", ".join(["%s"] * len(self.rows[0]))
        statement = f"INSERT INTO {self.table} ({self.names}) VALUES ({places})"
        with self.connection.cursor() as cursor:
            for row in self.rows:
                cursor.execute(statement, row)
                self.connection.commit()


class ExecuteValues(_Statements):
    """psycopg2's execute_values, 1000 rows for each statement and COMMIT."""

    def load(self) -> None:
        statement = f"INSERT INTO {self.table} ({self.names}) VALUES %s"
        with self.connection.cursor() as cursor:
            for first in range(0, len(self.rows), _PAGE):
                execute_values(cursor, statement, self.rows[first : first + _PAGE], page_size=_PAGE)
                self.connection.commit()


class Orm:
    """SQLAlchemy's ORM: `session.add` and `session.commit` for each row."""

    def prepare(self, url: str, table: str, rows: Sequence[Row]) -> None:
        self._class = mapped_class(url, table)
        self._rows = rows
        self._engine = create_engine(sqlalchemy_url(url))
        self._session = Session(self._engine)

    def load(self) -> None:
        for row in self._rows:
            self._session.add(self._class(**row))
            self._session.commit()

    def close(self) -> None:
        self._session.close()
        self._engine.dispose()


COPY, ROW_BY_ROW, ORM, VALUES = "COPY of prepared rows", "row by row", "SQLAlchemy ORM, row by row", "execute_values"
LOADERS: dict[str, Callable[[], Loader]] = {COPY: Copy, VALUES: ExecuteValues, ROW_BY_ROW: RowByRow, ORM: Orm}
# A commit for each row: measured on fewer rows, since their rate does not depend on how many there are.
SLOW = {ROW_BY_ROW, ORM}


def rows(count: int) -> list[Row]:
    return [wide(number) for number in range(count)]
