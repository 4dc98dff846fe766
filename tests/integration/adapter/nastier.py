"""The nasty manager's nastier habits: what was found to lose, double or change a write before it was handled."""

from __future__ import annotations

import enum
import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Enum,
    Integer,
    create_engine,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation

from .nasty import Base, Counter, Event, NastyManager, Position, TradingSession


class Kind(enum.Enum):
    """The ORM's enum; its column takes members, and names of members."""

    ENTRY = "entry"


class Note(Base):
    __tablename__ = "notes"
    id: Any = Column(Integer, primary_key=True)
    kind: Any = Column(Enum(Kind, validate_strings=True))
    details: Any = Column(JSON)
    at: Any = Column(DateTime, server_default=func.now())


# Tables as Core knows them.
_positions: Any = Position.__table__
_trading_sessions: Any = TradingSession.__table__


class NastierManager(NastyManager):
    """Method names say what they do."""

    LIMIT = 7

    def __init__(self, url: str, *, lenient_json: bool = False) -> None:
        super().__init__(url)
        if lenient_json:
            self.engine.dispose()
            self.engine = create_engine(self.engine.url, json_serializer=lambda value: json.dumps(value, default=str))
            self.session_factory.configure(bind=self.engine)
        self.second_engine = create_engine(self.engine.url)
        self.seen: set[str] = set()
        self.by_name: dict[str, int] = {}

    def close(self) -> None:
        self.second_engine.dispose()
        super().close()

    def __enter__(self) -> NastierManager:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @classmethod
    def connected_to(cls, url: str) -> NastierManager:
        return cls(url)

    # -- arguments

    def positional_only(self, name: str, /, more: str = "") -> bool:
        return self.bump(name + more)

    def starred(self, first: str, *names: str, suffix: str = "", **others: str) -> bool:
        return all(self.bump(name + suffix) for name in (first, *names, *others.values()))

    # -- sessions and savepoints

    def savepoint_object(self, name: str) -> bool:
        with self.get_session() as session:
            savepoint = session.begin_nested()
            session.add(Event(message=name))
            savepoint.commit()
            undone = session.begin_nested()
            session.add(Event(message=f"not {name}"))
            session.flush()
            undone.rollback()
            session.commit()
        return True

    def begin_block(self, name: str) -> bool:
        with self.session_factory() as session, session.begin():
            session.add(Event(message=name))
        return True

    def text_insert(self, name: str) -> bool:
        with self.session_factory() as session:
            session.execute(text("INSERT INTO system_events (message) VALUES (:name)"), {"name": name})
            session.commit()
        return True

    def bulk(self, name: str) -> bool:
        with self.get_session() as session:
            session.bulk_save_objects([Event(message=name), Event(message=f"{name} 2")])
            session.execute(insert(Event), [{"message": f"{name} 3"}, {"message": f"{name} 4"}])
            session.commit()
        return True

    def commits_and_then_violates(self, name: str) -> bool:
        """Its second session breaks a constraint after the first has committed."""
        self.log_event(name)
        with self.get_session() as session:
            session.add_all([Counter(name=name, value=1), Counter(name=name, value=2)])
            session.commit()
        return True

    def swallows_and_goes_on(self, name: str) -> bool:
        """Uses its session again after its commit; meanwhile one nested session fails and the next one works."""
        with self.get_session() as session:
            row = TradingSession(session_name=name)
            session.add(row)
            session.commit()
            assert row.id
            try:
                self.commits_and_then_violates(name)
            except Exception:  # noqa: BLE001 - as seen
                self.log_event("it failed")
            return bool(row.session_name)

    def tries_again(self, name: str) -> bool:
        """Lets a constraint decide, and then takes the next name."""
        for attempt in range(3):
            try:
                with self.get_session() as session:
                    session.add(Counter(name=f"{name} {attempt}", value=1))
                    session.commit()
                return True
            except Exception:  # noqa: BLE001, S112 - as seen
                continue
        return False

    def asks_its_dialect(self, name: str) -> bool:
        with self.get_session() as session:
            assert session.get_bind().dialect.name == "postgresql"
            session.add(Event(message=name))
            session.commit()
        return True

    # -- its own memory

    def only_once(self, name: str) -> bool:
        """Remembers what it has seen before it turns to the database."""
        if name in self.seen:
            return False
        self.seen.add(name)
        self.by_name[name] = len(self.by_name)
        return self.bump(name)

    # -- refusals

    def note(self, kind: Any, details: Any = None) -> int:
        with self.get_session() as session:
            row = Note(kind=kind, details=details)
            session.add(row)
            session.commit()
            note_id: int = row.id
            return note_id

    def swallowed_refusal(self, size: Any) -> bool:
        try:
            with self.session_factory() as session:
                session.add(Position(side="LONG", size=size))
                session.commit()
        except:  # noqa: E722 - as seen
            return False
        return True

    def answers_with_its_own_error(self, name: str) -> bool:
        """Makes an error of its own out of whatever it catches."""
        try:
            return self.bump(name)
        except BaseException as exc:
            raise RuntimeError("the database failed") from exc

    # -- ids

    def core_position(self, size: Any) -> int:
        with self.session_factory.begin() as session:
            made = insert(Position).values(side="CORE", size=size, entry_time=datetime.now(UTC)).returning(Position.id)
            position_id: int = session.execute(made).scalar_one()
        return position_id

    def core_position_by_parameters(self, size: Any) -> int:
        with self.session_factory.begin() as session:
            made = insert(_positions).returning(_positions.c.id)
            position_id: int = session.execute(made, {"side": "CORE", "size": size}).scalar_one()
        return position_id

    def text_position(self, size: Any) -> int:
        with self.session_factory.begin() as session:
            made = text("INSERT INTO positions (side, size) VALUES ('TEXT', :size) RETURNING id")
            position_id: int = session.execute(made, {"size": size}).scalar_one()
        return position_id

    def selected_position(self, size: Any) -> int:
        with self.session_factory.begin() as session:
            made = text("INSERT INTO positions (side, size) SELECT 'TEXT', :size RETURNING id")
            position_id: int = session.execute(made, {"size": size}).scalar_one()
        return position_id

    def found_position(self, size: Any, client_order_id: str) -> int:
        """Returns the row that is there already."""
        with self.get_session() as session:
            found = session.scalar(select(Position).where(Position.client_order_id == client_order_id))
            row = found or Position(side="FOUND", client_order_id=client_order_id)
            row.size = size
            session.add(row)
            session.commit()
            position_id: int = row.id
            return position_id

    # -- what cannot be part of the relay's transaction, where the source does not show it

    def check_then_bump(self, name: str) -> bool:
        """Tries a connection of its own first, under a bare except."""
        try:
            with vars(self)["engine"].connect() as connection:
                connection.execute(text("SELECT 1"))
        except:  # noqa: E722 - as seen
            return False
        return self.bump(name)

    def by_second_engine(self, name: str) -> bool:
        with vars(self)["second_engine"].begin() as connection:
            connection.execute(text("INSERT INTO counters VALUES (:name, 1)"), {"name": name})
        return True

    def by_driver(self, name: str) -> bool:
        raw = vars(self)["engine"].raw_connection()
        try:
            raw.cursor().execute("INSERT INTO counters VALUES (%s, 1)", (name,))
            raw.commit()
        finally:
            raw.close()
        return True

    def by_session_of_the_engine(self, name: str) -> bool:
        with Session(vars(self)["engine"]) as session:
            session.add(Counter(name=name, value=1))
            session.commit()
        return True

    def serializable(self, name: str) -> bool:
        with self.get_session() as session:
            session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
            session.add(Counter(name=name, value=1))
            session.commit()
        return True

    def serializable_by_option(self, name: str) -> bool:
        with self.get_session() as session:
            session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
            session.add(Counter(name=name, value=1))
            session.commit()
        return True

    # -- times

    def touch(self) -> bool:
        """Times in Core: a value, a column's default and its onupdate."""
        with self.session_factory.begin() as session:
            session.execute(update(Position).values(entry_time=datetime.now(UTC)))
            session.execute(insert(_trading_sessions).values(session_name="touched"))
        return True

    def in_another_zone(self, name: str) -> bool:
        with self.get_session() as session:
            session.execute(text("SET LOCAL TIME ZONE 'Asia/Tokyo'"))
            session.add(Event(message=name))
            session.commit()
        return True

    def zone(self) -> bool:
        with self.get_session() as session:
            session.add(Event(message=session.scalar(text("SHOW TIME ZONE"))))
            session.commit()
        return True


_CREATES = {
    "note": "notes", "core_position": "positions", "core_position_by_parameters": "positions",
    "text_position": "positions", "selected_position": "positions", "found_position": "positions",
}  # fmt: skip
_OTHERS = (
    "bump", "go_around", "positional_only", "starred", "savepoint_object", "begin_block", "text_insert", "bulk",
    "commits_and_then_violates", "swallows_and_goes_on", "tries_again", "asks_its_dialect", "only_once",
    "swallowed_refusal", "answers_with_its_own_error", "check_then_bump", "by_second_engine", "by_driver",
    "by_session_of_the_engine", "serializable", "serializable_by_option", "touch", "in_another_zone", "zone",
)  # fmt: skip
NASTIER_OPERATIONS = (
    *TRADING_OPERATIONS,
    *(ManagerOperation(name, creates=table) for name, table in _CREATES.items()),
    *(ManagerOperation(name, returns=True) for name in _OTHERS),
)
