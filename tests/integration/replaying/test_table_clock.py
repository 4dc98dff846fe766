"""Defaults of a table that read PostgreSQL's clock, in inserts of a manager that has no model of that table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import column, create_engine, insert, table, text
from sqlalchemy.orm import sessionmaker

from outbox.integrations.durable import ManagerOperation

from .harness import THEN, engine_url, replays

TABLES = """
    CREATE TABLE lines (
        id serial PRIMARY KEY, what text, at timestamptz NOT NULL DEFAULT now(),
        stamp timestamp DEFAULT timezone('utc', clock_timestamp()), share text DEFAULT to_char(now(), '"%"'),
        later timestamptz DEFAULT now() + interval '1 hour', lasting timestamptz DEFAULT '2000-01-01 00:00+00'
    );
    CREATE TABLE "Odd" (id serial PRIMARY KEY, "What" text, "At" timestamptz DEFAULT now());
"""
_lines = table("lines", column("what"), column("at"))


class Manager:
    def __init__(self, url: str) -> None:
        self.engine = create_engine(engine_url(url))
        self.session_factory = sessionmaker(bind=self.engine)

    def _text(self, sql: str, given: Any = None) -> None:
        with self.session_factory.begin() as session:
            session.execute(text(sql), given)

    def by_text(self) -> None:
        self._text("INSERT INTO lines (what) VALUES (:what)", {"what": "a"})

    def by_rows(self) -> None:
        self._text("INSERT INTO lines (what) VALUES ('a'), ('b, (')")

    def by_several(self) -> None:
        self._text("INSERT INTO lines (what) VALUES (:what)", [{"what": "a"}, {"what": "b"}])

    def by_expression(self) -> None:
        self._text("WITH made AS (INSERT INTO lines (what) VALUES ('a') RETURNING what) SELECT what FROM made")

    def by_core(self) -> None:
        with self.session_factory.begin() as session:
            session.execute(insert(_lines).values(what="a"))

    def by_alias(self) -> None:
        self._text("INSERT INTO lines AS l (what) VALUES ('a') ON CONFLICT (id) DO UPDATE SET what = l.what")

    def given(self) -> None:
        self._text("INSERT INTO lines (what, at) VALUES ('a', '2001-01-01 00:00+00')")

    def odd(self) -> None:
        self._text("""INSERT INTO "Odd" ("What") VALUES ('a')""")


@pytest.fixture
def manager(postgres_url: str) -> Iterator[Manager]:
    made = Manager(postgres_url)
    with made.engine.begin() as connection:
        connection.execute(text(TABLES))
    yield made
    made.engine.dispose()


def rows(manager: Manager, columns: str = "at, stamp, later, extract(year FROM lasting)", of: str = "lines") -> Any:
    with manager.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(f"SELECT {columns} FROM {of}"))]


@pytest.mark.parametrize("form", ["by_text", "by_rows", "by_several", "by_expression", "by_core", "by_alias"])
def test_default_of_table_reads_the_clock_of_the_call(manager: Manager, postgres_url: str, form: str) -> None:
    """The lines of an outage all got the time of their delivery: the latest one was not to be found."""
    with replays(manager, postgres_url) as run:
        run.call(ManagerOperation(form))
    found = rows(manager)
    assert len(found) in (1, 2)
    for at, stamp, later, year in found:
        assert (at, stamp) == (THEN, THEN.replace(tzinfo=None))
        assert (later - at).total_seconds() == 3600
        assert year == 2000


def test_time_that_a_call_gives_stays_beside_defaults(manager: Manager, postgres_url: str) -> None:
    with replays(manager, postgres_url) as run:
        run.call(ManagerOperation("given"))
    assert rows(manager, "extract(year FROM at), stamp") == [(2001, THEN.replace(tzinfo=None))]


def test_default_of_table_with_quoted_names_reads_the_clock(manager: Manager, postgres_url: str) -> None:
    with replays(manager, postgres_url) as run:
        run.call(ManagerOperation("odd"))
    assert rows(manager, '"At"', '"Odd"') == [(THEN,)]


def test_default_that_was_dropped_meanwhile_is_not_given(manager: Manager, postgres_url: str) -> None:
    with replays(manager, postgres_url) as run:
        run.call(ManagerOperation("by_text"))
        with manager.engine.begin() as connection:
            connection.execute(text("ALTER TABLE lines DROP COLUMN later"))
        with pytest.raises(Exception, match="later"):
            run.call(ManagerOperation("by_text"))
        run.call(ManagerOperation("by_text"))
    assert len(rows(manager, "id")) == 2
