"""Sessions of a replay keep and undo what sessions of the manager do, also what goes past the ORM's flush."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg2.extras
import pytest
from sqlalchemy import Column, Integer, String, create_engine, func, insert, select, text
from sqlalchemy.exc import DataError, IntegrityError, InternalError
from sqlalchemy.orm import DeclarativeBase, sessionmaker

from outbox import TargetMisconfigured
from outbox.integrations.durable import ManagerOperation
from outbox.integrations.operations import wrote_rows
from outbox.integrations.replay.replay import CallFailed

from .harness import Replays, engine_url, replays


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Any = Column(Integer, primary_key=True)
    what: Any = Column(String, unique=True)


_NOTES: Any = Note.__table__
_FUNCTIONS = """
    CREATE FUNCTION put_note(what text) RETURNS int LANGUAGE sql AS
        $$ INSERT INTO notes (what) VALUES (what) RETURNING id $$;
    CREATE FUNCTION count_notes() RETURNS bigint LANGUAGE sql STABLE AS $$ SELECT count(*) FROM notes $$;
"""


class Manager:
    def __init__(self, url: str) -> None:
        self.engine = create_engine(engine_url(url))
        self.session_factory = sessionmaker(bind=self.engine)
        with self.engine.begin() as connection:
            Base.metadata.create_all(connection)
            connection.execute(text(_FUNCTIONS))

    # -- ways to write

    def mappings(self, session: Any) -> None:
        session.bulk_insert_mappings(Note, [{"what": "a"}, {"what": "b"}])

    def objects(self, session: Any) -> None:
        session.bulk_save_objects([Note(what="a")])

    def connection(self, session: Any) -> None:
        session.connection().execute(insert(_NOTES).values(what="a"))

    def cte(self, session: Any) -> None:
        session.execute(select(insert(Note).values(what="a").returning(Note.id).cte("made").c.id))

    def function(self, session: Any) -> None:
        session.execute(select(func.put_note("a")))

    def function_in_text(self, session: Any) -> None:
        session.scalar(text('SELECT "public"."put_note" (:what)'), {"what": "a"})

    def by_name(self, session: Any) -> None:
        session.connection().connection.cursor().callproc("put_note", ["a"])

    def values(self, session: Any) -> None:
        cursor = session.connection().connection.cursor()
        psycopg2.extras.execute_values(cursor, "INSERT INTO notes (what) VALUES %s", [("a",), ("b",)])

    def copy(self, session: Any) -> None:
        session.connection().connection.cursor().copy_expert("COPY notes (what) FROM STDIN", io.StringIO("a\nb\n"))

    # -- methods

    def commits(self, way: str) -> None:
        with self.session_factory() as session:
            getattr(self, way)(session)
            session.commit()

    def rolls_back(self, way: str) -> bool:
        with self.session_factory() as session:
            getattr(self, way)(session)
            session.rollback()
        return True

    def closes(self, way: str) -> bool:
        with self.session_factory() as session:
            getattr(self, way)(session)
        return True

    def reads(self) -> None:
        with self.session_factory() as session:
            session.execute(select(func.count(), func.count_notes()).select_from(Note).where(Note.id.in_([1, 2])))
            session.execute(text("WITH found AS (SELECT * FROM notes) SELECT max(id) FROM found"))
            session.commit()

    # -- constraints that are checked at the end

    def has_a_way_out(self) -> bool:
        for of in (77, None):
            with suppress(IntegrityError):
                with self.session_factory.begin() as session:
                    session.execute(text("INSERT INTO replies (of, what) VALUES (:of, 'a')"), {"of": of})
                return True
        return False

    def answers_first(self) -> None:
        with self.session_factory.begin() as session:
            session.execute(text("INSERT INTO replies (of, what) VALUES (77, 'b')"))
            session.execute(insert(Note).values(id=77, what="asked"))

    # -- sessions that overlap

    def note(self, what: str) -> None:
        with self.session_factory.begin() as session:
            session.add(Note(what=what))

    def notes_a_failure(self) -> bool:
        with self.session_factory() as session:
            try:
                session.execute(insert(Note).values(what="undone"))
                session.execute(text("SELECT 1 / 0"))
                session.commit()
            except Exception:  # noqa: BLE001 - as seen
                self.note("failure")
                session.rollback()
        return True

    def goes_on_after_a_failure(self) -> bool:
        """Which PostgreSQL does not let it."""
        with self.session_factory() as session:
            session.execute(insert(Note).values(what="undone"))
            with suppress(DataError):
                session.execute(text("SELECT 1 / 0"))
            with session.begin_nested():
                session.add(Note(what="later"))
            session.commit()
        return True

    def notes_and_refuses(self) -> bool:
        with suppress(LookupError), self.session_factory.begin() as session:
            session.scalar(select(func.count()).select_from(Note))
            self.note("refused")
            raise LookupError
        return True

    def reader_ends_first(self) -> bool:
        reader, writer = self.session_factory(), self.session_factory()
        reader.scalar(select(func.count()).select_from(Note))
        writer.add(Note(what="kept"))
        writer.flush()
        reader.close()
        writer.commit()
        writer.close()
        return True

    def undoes_the_inner_one(self) -> bool:
        with self.session_factory.begin() as outer, self.session_factory() as inner:
            outer.add(Note(what="outer"))
            outer.flush()
            inner.add(Note(what="inner"))
            inner.flush()
            inner.rollback()
        return True

    def undoes_the_outer_one(self) -> bool:
        with self.session_factory() as session:
            session.add(Note(what="outer"))
            session.flush()
            self.note("inner")
            session.rollback()
        return True

    def undoes_the_first_of_two(self) -> bool:
        first, second = self.session_factory(), self.session_factory()
        for session, what in ((first, "first"), (second, "second")):
            session.add(Note(what=what))
            session.flush()
        first.rollback()
        second.commit()
        return True

    def undoes_what_ended_with_the_first(self) -> bool:
        first, second = self.session_factory(), self.session_factory()
        for session, what in ((first, "first"), (second, "second")):
            session.add(Note(what=what))
            session.flush()
        first.commit()
        second.rollback()
        return True


@pytest.fixture
def manager(postgres_url: str) -> Iterator[Manager]:
    made = Manager(postgres_url)
    yield made
    made.engine.dispose()


@pytest.fixture
def here(manager: Manager, postgres_url: str) -> Iterator[Replays]:
    with replays(manager, postgres_url) as made:
        yield made


def notes(manager: Manager) -> list[str]:
    with manager.engine.begin() as connection:
        found = list(connection.scalars(select(_NOTES.c.what).order_by(_NOTES.c.what)))
        connection.execute(text("DELETE FROM notes"))
    return found


def as_plain(manager: Manager, here: Replays, method: str, **args: Any) -> list[str]:
    """The rows of a replay, which must be those of the manager itself."""
    getattr(manager, method)(**args)
    plain = notes(manager)
    here.call(ManagerOperation(method), **args)
    assert notes(manager) == plain
    return plain


WAYS = [
    "mappings",
    "objects",
    "connection",
    "cte",
    "function",
    "function_in_text",
    "by_name",
    "values",
    "copy",
]


@pytest.mark.parametrize("way", WAYS)
def test_write_past_the_flush_is_kept_or_undone_as_by_the_manager(manager: Manager, here: Replays, way: str) -> None:
    assert as_plain(manager, here, "commits", way=way)
    assert not as_plain(manager, here, "rolls_back", way=way)
    assert not as_plain(manager, here, "closes", way=way)


def test_deferred_constraint_is_checked_at_the_commit_of_the_manager(manager: Manager, postgres_url: str) -> None:
    """As those of Django's tables are."""
    with manager.engine.begin() as connection:
        of = "of int REFERENCES notes DEFERRABLE INITIALLY DEFERRED"
        connection.execute(text(f"CREATE TABLE replies ({of}, what text)"))
    with replays(manager, postgres_url) as here:
        here.call(ManagerOperation("has_a_way_out"))
        here.call(ManagerOperation("answers_first"))
    with manager.engine.connect() as connection:
        found = connection.execute(text("SELECT of, what FROM replies ORDER BY what"))
        assert [tuple(row) for row in found] == [(None, "a"), (77, "b")]


def test_call_that_only_reads_is_not_taken_for_a_write(manager: Manager, here: Replays) -> None:
    with pytest.raises(CallFailed):
        here.call(ManagerOperation("reads", success=wrote_rows))


def test_function_that_is_made_after_a_failure_is_known(manager: Manager, here: Replays) -> None:
    with manager.engine.begin() as connection:
        connection.execute(text("ALTER FUNCTION put_note RENAME TO away"))
    with pytest.raises(Exception, match="put_note"):
        here.call(ManagerOperation("commits"), way="function")
    with manager.engine.begin() as connection:
        connection.execute(text("ALTER FUNCTION away RENAME TO put_note"))
    assert as_plain(manager, here, "commits", way="function") == ["a"]


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ("notes_a_failure", ["failure"]),
        ("notes_and_refuses", ["refused"]),
        ("reader_ends_first", ["kept"]),
        ("undoes_the_inner_one", ["outer"]),
    ],
)
def test_sessions_that_overlap_keep_what_they_commit(
    manager: Manager, here: Replays, method: str, kept: list[str]
) -> None:
    assert as_plain(manager, here, method) == kept


def test_session_that_goes_on_after_a_failure_fails_as_the_managers(manager: Manager, here: Replays) -> None:
    for call in (manager.goes_on_after_a_failure, lambda: here.call(ManagerOperation("goes_on_after_a_failure"))):
        with pytest.raises(InternalError, match="InFailedSqlTransaction"):
            call()
        assert notes(manager) == []


@pytest.mark.filterwarnings("ignore:nested transaction already deassociated")
@pytest.mark.parametrize(
    "method", ["undoes_the_outer_one", "undoes_the_first_of_two", "undoes_what_ended_with_the_first"]
)
def test_rollback_that_would_undo_another_session_is_refused(manager: Manager, here: Replays, method: str) -> None:
    with pytest.raises(TargetMisconfigured, match="while another one was open"):
        here.call(ManagerOperation(method))
    assert notes(manager) == []
