"""In a replay time stands still at the call, wherever the manager reads it, and nowhere else."""

# The manager here is written as real ones are, not as this project writes.
# ruff: noqa: DTZ001, DTZ006, DTZ007, DTZ011, DTZ901, E721, RUF012, S301
from __future__ import annotations

import builtins
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Date,
    DateTime,
    Float,
    String,
    create_engine,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, sessionmaker, validates
from sqlalchemy.schema import ForeignKey

from outbox.integrations.durable import ManagerOperation
from tests.unit.fakes.waiting import LONG

from .clock_helpers import all_readings, as_keyword, epoch_ms
from .harness import THEN, Replays, engine_url, replays

# Managers use it; Python 3.12 deprecates it.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")

AWARE = DateTime(timezone=True)

# Where no search for readers of the clock looks, as in a compiled library.
HIDDEN: list[Any] = [datetime.utcnow, datetime.now]
# What the manager has seen.
SEEN: list[Any] = []


def in_a_minute() -> datetime:
    return datetime.now(UTC) + timedelta(minutes=1)


class Base(DeclarativeBase):
    pass


class Row(Base):
    """Columns of every kind that reads the clock; `what` names the row."""

    __tablename__ = "clock_rows"
    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str] = mapped_column(String(40))
    ms: Mapped[int] = mapped_column(BigInteger, default=lambda: int(time.time() * 1000))
    helped: Mapped[int] = mapped_column(BigInteger, default=epoch_ms)
    captured: Mapped[float] = mapped_column(Float(53), default=time.time)
    naive: Mapped[datetime] = mapped_column(DateTime, default=datetime.utcnow)
    day: Mapped[date] = mapped_column(Date, default=date.today)
    expires: Mapped[datetime] = mapped_column(AWARE, default=in_a_minute)
    by_clause: Mapped[datetime] = mapped_column(AWARE, default=func.now())
    by_server: Mapped[datetime] = mapped_column(AWARE, server_default=func.now())
    by_text: Mapped[datetime] = mapped_column(DateTime, server_default=text("timezone('utc', CURRENT_TIMESTAMP)"))
    by_expiry: Mapped[datetime] = mapped_column(AWARE, server_default=text("now() + interval '1 hour'"))
    never: Mapped[datetime] = mapped_column(AWARE, server_default=text("'2000-01-01 00:00+00'"))
    changed: Mapped[datetime | None] = mapped_column(AWARE, onupdate=func.now())
    touched: Mapped[float | None] = mapped_column(Float(53), onupdate=time.time)
    note: Mapped[str | None] = mapped_column(String(80))


class Parent(Base):
    __tablename__ = "clock_parents"
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(default=1)
    changed: Mapped[datetime | None] = mapped_column(AWARE, onupdate=func.now())
    children: Mapped[list[Child]] = relationship()
    __mapper_args__ = {"version_id_col": version}


class Child(Base):
    __tablename__ = "clock_children"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("clock_parents.id"))
    at: Mapped[datetime] = mapped_column(AWARE)

    @validates("at")
    def _not_in_the_future(self, _: str, value: datetime) -> datetime:
        assert isinstance(value, datetime)
        assert value <= datetime.now(UTC)
        return value


class Clock:
    def __init__(self, read: Any) -> None:
        self.read = read


@dataclass
class Stamped:
    at: datetime = field(default_factory=datetime.utcnow)


class Manager:
    """Writes with the clock in every way."""

    stamp = staticmethod(datetime.utcnow)
    seconds: Any = time.time

    def __init__(self, url: str) -> None:
        self.engine = create_engine(engine_url(url))
        self.session_factory = sessionmaker(bind=self.engine)
        self.tick = time.time
        self.clock = Clock(time.time)

    def orm(self, what: str) -> int:
        with self.session_factory.begin() as session:
            row = Row(what=what)
            session.add(row)
            session.flush()
            SEEN.append((row.by_server, row.by_clause, row.ms))
            return row.id

    def several(self, what: str) -> bool:
        with self.session_factory.begin() as session:
            session.add_all([Row(what=what) for _ in range(3)])
        return True

    def core(self, what: str) -> bool:
        with self.session_factory.begin() as session:
            session.execute(insert(Row).values(what=what))
            session.execute(insert(Row), [{"what": what}, {"what": what}])
            session.execute(insert(Row).values([{"what": what}, {"what": what}]))
            session.connection().execute(insert(Base.metadata.tables["clock_rows"]), {"what": what})
            session.bulk_insert_mappings(Row, [{"what": what}, {"what": what}])
        return True

    def change(self, what: str) -> bool:
        with self.session_factory.begin() as session:
            session.scalars(select(Row).where(Row.what == what)).one().note = "changed"
        return True

    def change_many(self, what: str) -> bool:
        with self.session_factory.begin() as session:
            session.execute(update(Row).where(Row.what == what).values(note=func.to_char(func.now(), "YYYY")))
        return True

    def raw(self, what: str) -> bool:
        with self.session_factory.begin() as session:
            session.execute(
                text(
                    "/* a tag; now() */ UPDATE clock_rows SET changed = now(), note = 'now() ' || CURRENT_DATE "
                    "WHERE what = :what"
                ),
                {"what": what},
            )
        return True

    def look(self, what: str) -> bool:
        SEEN.append(all_readings())
        assert Manager.seconds() == self.seconds() == Manager.stamp().replace(tzinfo=UTC).timestamp()
        SEEN.append((as_keyword(), self.stamp(), self.tick(), self.seconds(), Stamped().at))
        SEEN.append((time.monotonic(), time.perf_counter()))
        return self.core(what)

    def import_here(self, what: str) -> bool:
        import datetime as dates
        import time as times
        from datetime import datetime as moment
        from time import time as seconds

        SEEN.extend([times.time(), seconds(), moment.now(UTC).timestamp(), dates.datetime.now(UTC).timestamp()])
        SEEN.append(self.clock.read())

        from .lazy_helper import reading

        SEEN.append(reading())
        return self.core(what)

    def types(self, what: str) -> bool:
        now = datetime.now(UTC)
        SEEN.extend([
            type(now), type(datetime(2024, 1, 1)), type(datetime.fromisoformat("2024-01-01")), type(date.today()),
            type(datetime.strptime("2024", "%Y")), type(datetime.fromtimestamp(0)), type(now.replace(microsecond=0)),
            isinstance(now, datetime), isinstance(now, date), isinstance(date.today(), datetime),
            issubclass(datetime, date), type(now) == datetime, {datetime: 1}[type(now)],
            pickle.loads(pickle.dumps(now)) == now, datetime.max.year, datetime.combine(date(2024, 1, 1), now.timetz()),
            match_of(now),
        ])  # fmt: skip

        class Own(datetime):
            pass

        SEEN.append((Own(2024, 1, 1), isinstance(Own(2024, 1, 1), datetime)))
        return self.core(what)

    def selected(self, what: str) -> bool:
        with self.session_factory.begin() as session:
            session.execute(insert(Row).from_select(["what"], select(literal(what).label("what"))))
        return True

    def hide(self, what: str) -> bool:
        with self.session_factory.begin() as session:
            session.add(Row(what=what, expires=HIDDEN[0](), naive=HIDDEN[1](UTC)))
        return True

    def append(self, parent: int) -> bool:
        with self.session_factory.begin() as session:
            found = session.get_one(Parent, parent)
            found.children.append(Child(at=datetime.now(UTC)))
        return True

    def wait(self, what: str) -> bool:
        deadline = time.time() + 0.02
        while time.time() < deadline:
            time.sleep(0.005)
        return self.core(what)


def match_of(value: Any) -> str:
    match value:
        case datetime():
            return "datetime"
    return "other"


@pytest.fixture
def manager(postgres_url: str) -> Iterator[Manager]:
    made = Manager(postgres_url)
    SEEN.clear()
    Base.metadata.create_all(made.engine)
    yield made
    made.engine.dispose()


@pytest.fixture
def run(manager: Manager, postgres_url: str) -> Iterator[Replays]:
    with replays(manager, postgres_url) as made:
        yield made


def rows(manager: Manager, what: str) -> list[Row]:
    with sessionmaker(manager.engine).begin() as session:
        found = list(session.scalars(select(Row).where(Row.what == what)))
        session.expunge_all()
    return found


def is_of_then(row: Row) -> bool:
    ms = int(THEN.timestamp() * 1000)
    return (
        (row.ms, row.helped, row.captured) == (ms, ms, THEN.timestamp())
        and (row.naive, row.day) == (THEN.replace(tzinfo=None), THEN.astimezone().date())
        and row.expires == THEN + timedelta(minutes=1)
        and (row.by_clause, row.by_server) == (THEN, THEN)
        and row.by_text == THEN.replace(tzinfo=None)
        and row.by_expiry == THEN + timedelta(hours=1)
        and row.never == datetime(2000, 1, 1, tzinfo=UTC)
    )


@pytest.mark.parametrize(("method", "count"), [("orm", 1), ("several", 3), ("core", 8), ("selected", 1), ("wait", 8)])
def test_every_time_of_a_new_row_is_that_of_the_call(run: Replays, manager: Manager, method: str, count: int) -> None:
    run.call(ManagerOperation(method), what="x")
    found = rows(manager, "x")
    assert len(found) == count
    if method == "orm":
        assert [(THEN, THEN, int(THEN.timestamp() * 1000))] == SEEN
    if method != "wait":
        assert [is_of_then(row) for row in found] == [True] * count
    else:
        assert all(abs(row.by_server - THEN) < timedelta(seconds=1) for row in found)


def test_a_changed_row_has_the_time_of_the_call(run: Replays, manager: Manager) -> None:
    for method in ("change", "change_many", "raw"):
        manager.orm(method)
        run.call(ManagerOperation(method), what=method)
        [row] = rows(manager, method)
        assert row.changed == THEN
        assert method == "raw" or row.touched == THEN.timestamp()
        assert row.by_server > THEN
        said = {"change": "changed", "change_many": "2023", "raw": f"now() {THEN.date()}"}
        assert row.note == said[method]


def test_every_reading_of_the_clock_is_that_of_the_call(run: Replays, manager: Manager) -> None:
    began = time.monotonic()
    run.call(ManagerOperation("look"), what="x")
    readings, others, durations = SEEN
    for name, value in readings.items():
        expected: Any = THEN.astimezone().date() if "date." in name else THEN
        expected = THEN.replace(microsecond=0) if name in ("gmtime", "strftime") else expected
        assert value == expected, name
    naive = THEN.replace(tzinfo=None)
    assert others == (THEN.timestamp(), naive, THEN.timestamp(), THEN.timestamp(), naive)
    assert all(began <= value < began + LONG for value in durations[:1])


def test_imports_within_a_method_read_the_time_of_the_call(run: Replays, manager: Manager) -> None:
    run.call(ManagerOperation("import_here"), what="x")
    assert [THEN.timestamp()] * 6 == SEEN
    assert (manager.clock.read, sys.modules["time"]) == (time.time, time)
    assert sys.modules[f"{__package__}.lazy_helper"].seconds is time.time
    assert builtins.__import__.__name__ == "__import__"


def test_values_and_classes_stay_plain_in_a_replay(run: Replays, manager: Manager) -> None:
    run.call(ManagerOperation("types"), what="x")
    assert SEEN[:4] == [datetime, datetime, datetime, date]
    assert SEEN[4:7] == [datetime] * 3
    assert SEEN[7:15] == [True, True, False, True, True, 1, True, 9999]
    assert type(SEEN[15]) is datetime
    assert SEEN[16] == "datetime"
    own, is_datetime = SEEN[17]
    assert (own.year, is_datetime) == (2024, True)


def test_other_threads_keep_the_real_time(run: Replays, manager: Manager) -> None:
    """The host reads the clock by the same names while a replay holds them."""
    inside, seen = threading.Event(), threading.Event()
    readings: list[Any] = []

    def observe() -> None:
        inside.wait(LONG)
        readings.append((datetime.now(UTC), time.time(), epoch_ms() / 1000, date.today(), datetime(2024, 1, 1)))
        seen.set()

    class Slow(Manager):
        def slow(self, what: str) -> bool:
            inside.set()
            assert seen.wait(LONG)
            return self.core(what)

    manager.__class__ = Slow
    thread = threading.Thread(target=observe)
    thread.start()
    run.call(ManagerOperation("slow"), what="x")
    thread.join()
    now, seconds, helped, today, made = readings[0]
    assert all(abs(value - time.time()) < 60 for value in (now.timestamp(), seconds, helped))
    assert today.year >= 2024
    assert type(made) is datetime
    assert all(is_of_then(row) for row in rows(manager, "x"))


def test_a_reader_of_the_clock_that_is_not_found_is_put_right(run: Replays, manager: Manager) -> None:
    run.call(ManagerOperation("hide"), what="x")
    [row] = rows(manager, "x")
    assert (row.expires, row.naive) == (THEN, THEN.replace(tzinfo=None))


def test_modules_of_the_host_are_as_before_after_a_replay(run: Replays, manager: Manager) -> None:
    before = (datetime, date, time, manager.tick, Manager.stamp, as_keyword.__kwdefaults__, vars(Manager)["seconds"])
    run.call(ManagerOperation("core"), what="x")
    after = (datetime, date, time, manager.tick, Manager.stamp, as_keyword.__kwdefaults__, vars(Manager)["seconds"])
    assert all(one is other or one == other for one, other in zip(before, after, strict=True))
    assert isinstance(datetime, type)
    assert type(datetime) is type
    assert type(time).__name__ == "module"


def test_a_collection_that_grew_leaves_its_owner_alone(run: Replays, manager: Manager) -> None:
    with sessionmaker(manager.engine).begin() as session:
        session.add(Parent(id=1))
    run.call(ManagerOperation("append"), parent=1)
    with sessionmaker(manager.engine)() as session:
        parent = session.get_one(Parent, 1)
        assert (parent.version, parent.changed) == (1, None)
        assert parent.children[0].at == THEN


def test_a_time_among_the_arguments_is_left_as_it_is(run: Replays, manager: Manager) -> None:
    class Scheduling(Manager):
        def schedule(self, at: datetime) -> bool:
            time.sleep(0.01)
            with self.session_factory.begin() as session:
                session.add(Row(what="x", expires=at))
            return True

    manager.__class__ = Scheduling
    at = datetime.now(UTC) + timedelta(milliseconds=2)
    run.call(ManagerOperation("schedule"), at=at)
    assert rows(manager, "x")[0].expires == at
