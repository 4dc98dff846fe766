"""A replay runs on the manager's connection: the same table and the same values, however its engine is configured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, Engine, create_engine, event, insert, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool
from sqlalchemy.types import DateTime, Interval, String

from outbox import ConfigError, Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.errors import TargetMisconfigured
from outbox.integrations.durable import DurableDatabaseManager, ManagerOperation
from outbox.integrations.manager.manager_connection import check_connection
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG

from .harness import engine_url, replays

NAIVE = datetime(2024, 5, 6, 7, 8, 9)  # noqa: DTZ001 - as managers write it
# What the manager has read back.
READ: list[Any] = []
SYMBOLS = ("plain", "first", "second")

TABLE = """
    CREATE TABLE {schema}.trades (
        id serial PRIMARY KEY, symbol text, at timestamptz, local timestamp, spent interval, taken text, extra jsonb,
        who text DEFAULT CURRENT_USER, tenant text DEFAULT current_setting('app.tenant', true),
        source text DEFAULT current_setting('application_name'), day text DEFAULT '07/08/2024'::text
    );
    GRANT ALL ON {schema}.trades, {schema}.trades_id_seq TO writer
"""
SHOWN = "symbol, at::text, local::text, spent::text, taken, extra::text, who, tenant, source"


class Base(DeclarativeBase):
    pass


class Trade(Base):
    __tablename__ = "trades"
    id: Mapped[int] = mapped_column(primary_key=True)
    symbol: Mapped[str] = mapped_column(String)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    local: Mapped[datetime] = mapped_column(DateTime)
    spent: Mapped[Any] = mapped_column(Interval)
    taken: Mapped[str] = mapped_column(String)
    extra: Mapped[Any] = mapped_column(JSONB)


class Manager:
    """Writes what depends on the session: naive times, texts of times and intervals, names without a schema."""

    def __init__(self, engine: Engine, bind: Any = None, **options: Any) -> None:
        self.engine = engine
        self.session_factory = sessionmaker(bind=engine if bind is None else bind, **options)

    def log_trade(self, symbol: str) -> int:
        with self.session_factory.begin() as session:
            trade: Any = Trade(symbol=symbol, at=NAIVE, local=NAIVE, extra={"by": symbol})
            trade.spent = text("interval '1 day 02:03:04'")
            trade.taken = text("(timestamptz '2024-07-08 00:00+00')::text || (interval '3 days')::text")
            session.add(trade)
            session.flush()
            # What is cast in the session: 07/08 is a day in July or in August.
            session.execute(
                text("UPDATE trades SET local = CAST('07/08/2024' AS timestamp) WHERE id = :id"), {"id": trade.id}
            )
            session.refresh(trade)
            READ.append(trade.extra)
            return int(trade.id)


Configure = Callable[[str], Manager]


def engine(url: str, **options: Any) -> Engine:
    return create_engine(engine_url(url), **options)


def with_options(*options: str) -> Configure:
    return lambda url: Manager(engine(url, connect_args={"options": " ".join(f"-c {one}" for one in options)}))


def by_url(url: str) -> Manager:
    return Manager(engine(f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3Dbot%20-capp.tenant%3Da"))


def listening(name: str, *statements: str) -> Configure:
    def configure(url: str) -> Manager:
        made = engine(url)

        @event.listens_for(made, name)
        def listen(connection: Any, *_: Any) -> None:
            for statement in statements:
                if name == "begin":
                    connection.exec_driver_sql(statement)
                else:
                    raw: Any = connection.connection if isinstance(connection, Connection) else connection
                    with raw.cursor() as cursor:
                        cursor.execute(statement)

        return Manager(made)

    return configure


def recipe(url: str) -> Manager:
    """The listener of SQLAlchemy's documentation for a search path."""
    made = engine(url)

    @event.listens_for(made, "connect", insert=True)
    def set_search_path(raw: Any, _: Any) -> None:
        kept, raw.autocommit = raw.autocommit, True
        with raw.cursor() as cursor:
            cursor.execute("SET SESSION search_path = bot")
        raw.autocommit = kept

    return Manager(made)


def translated(url: str) -> Manager:
    made = engine(url, execution_options={"schema_translate_map": {None: "bot"}})
    return Factual(made)


def translated_later(url: str) -> Manager:
    made = engine(url)
    return Factual(made, bind=made.execution_options(schema_translate_map={None: "bot"}))


class Factual(Manager):
    """Names no table in text of its own, which no map translates."""

    def log_trade(self, symbol: str) -> int:
        with self.session_factory.begin() as session:
            returned = session.execute(
                insert(Trade).values(symbol=symbol, at=NAIVE, local=NAIVE, extra={"by": symbol}).returning(Trade.id)
            )
            return int(returned.scalar_one())


def tagged(url: str) -> Manager:
    """Comments of its own before each statement, and another symbol in its parameters."""
    made = engine(url)

    @event.listens_for(made, "before_cursor_execute", retval=True)
    def tag(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> tuple[str, Any]:
        if isinstance(parameters, dict) and "symbol" in parameters:
            parameters = {**parameters, "symbol": f"{parameters['symbol']}!"}
        return f"/* now() by bot */ {statement}", parameters

    @event.listens_for(made, "before_execute", retval=True)
    def look(_: Any, statement: Any, many: Any, one: Any, __: Any) -> tuple[Any, Any, Any]:
        return statement, many, one

    return Manager(made)


def json_of_its_own(url: str) -> Manager:
    return Manager(
        engine(
            url,
            json_serializer=lambda value: json.dumps({"wrapped": value}),
            json_deserializer=lambda value: ("read", json.loads(value)),
        )
    )


def by_session_event(url: str) -> Manager:
    manager = Manager(engine(url))

    @event.listens_for(manager.session_factory, "after_begin")
    def begin(_: Session, __: Any, connection: Connection) -> None:
        connection.execute(text("SET LOCAL app.tenant = 'session'"))

    return manager


def own_creator(url: str) -> Manager:
    return Manager(
        engine("postgresql://", creator=lambda: psycopg2.connect(url, options="-c search_path=bot"), poolclass=NullPool)
    )


WAYS: dict[str, Configure] = {
    "nothing": with_options(),
    "search_path by connect_args": with_options("search_path=bot"),
    "search_path and tenant by URL": by_url,
    "search_path by a connect listener": listening("connect", "SET search_path = bot"),
    "search_path by the recipe": recipe,
    "search_path by a checkout listener": listening("checkout", "SET search_path = bot, public"),
    "search_path by a begin listener": listening("begin", "SET LOCAL search_path = bot"),
    "search_path by engine_connect": listening("engine_connect", "SET search_path = bot"),
    "search_path by a creator": own_creator,
    "schema_translate_map of the engine": translated,
    "schema_translate_map of an option engine": translated_later,
    "role": listening("connect", "SET ROLE writer"),
    "role in each transaction": listening("begin", "SET LOCAL ROLE writer", "SET LOCAL app.tenant = 'x''z'"),
    "time zone": with_options("TimeZone=America/New_York"),
    "DateStyle": with_options("DateStyle=ISO,DMY"),
    "IntervalStyle": with_options("IntervalStyle=postgres_verbose"),
    "a variable for row-level security": with_options("app.tenant=ac%me"),
    "a variable by a listener": listening("connect", "SET app.tenant = 'acme'"),
    "a variable by a session event": by_session_event,
    "application_name": lambda url: Manager(engine(url, connect_args={"application_name": "bot"})),
    "events that change statements": tagged,
    "JSON functions": json_of_its_own,
    "insertmanyvalues off": lambda url: Manager(engine(url, use_insertmanyvalues=False)),
    "isolation level as the relay's": lambda url: Manager(engine(url, isolation_level="READ COMMITTED")),
    "several at once": with_options(
        "search_path=bot", "TimeZone=Asia/Kolkata", "DateStyle=ISO,DMY", "app.tenant=b", "role=writer"
    ),
}


def prepare(url: str) -> None:
    raw = psycopg2.connect(url)
    with raw, raw.cursor() as cursor:
        cursor.execute("DO $$ BEGIN CREATE ROLE writer; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        cursor.execute("CREATE SCHEMA bot; GRANT USAGE ON SCHEMA bot, public TO writer")
        for schema in ("public", "bot"):
            cursor.execute(TABLE.format(schema=schema))
            cursor.execute(
                f"ALTER TABLE {schema}.trades ENABLE ROW LEVEL SECURITY;"
                f"CREATE POLICY own ON {schema}.trades "
                f"USING (tenant IS NOT DISTINCT FROM current_setting('app.tenant', true))"
            )
    raw.close()


def rows_of(url: str, symbol: str) -> list[Any]:
    raw = psycopg2.connect(url)
    with raw, raw.cursor() as cursor:
        cursor.execute(
            f"SELECT 'bot', {SHOWN} FROM bot.trades WHERE symbol LIKE %(it)s "
            f"UNION ALL SELECT 'public', {SHOWN} FROM public.trades WHERE symbol LIKE %(it)s",
            {"it": f"{symbol}%"},
        )
        found = [tuple(str(value).replace(symbol, "S") for value in row) for row in cursor.fetchall()]
    raw.close()
    return found


def state_of(connection: Connection) -> Any:
    """The settings of the relay's session, which its receipts and other entries are written with."""
    with connection.begin():
        return connection.exec_driver_sql(
            "SELECT current_user, session_user, coalesce(current_setting('app.tenant', true), ''), "
            "(SELECT jsonb_object_agg(name, setting) FROM pg_settings WHERE name <> 'transaction_isolation')"
        ).one()


@pytest.mark.parametrize("way", WAYS)
def test_a_replay_leaves_the_row_of_the_plain_manager(postgres_url: str, way: str) -> None:
    prepare(postgres_url)
    manager = WAYS[way](postgres_url)
    READ.clear()
    manager.log_trade("plain")
    with replays(manager, postgres_url) as run:
        check_connection(manager, postgres_url)
        before = state_of(run.connection)
        for symbol in SYMBOLS[1:]:
            run.call(ManagerOperation("log_trade"), symbol=symbol)
        assert state_of(run.connection) == before
    plain = rows_of(postgres_url, "plain")
    assert len(plain) == 1
    assert [rows_of(postgres_url, symbol) for symbol in SYMBOLS[1:]] == [plain, plain]
    read = [str(value).replace(name, "S") for value, name in zip(READ, SYMBOLS, strict=False)]
    assert read == read[:1] * len(read)
    manager.engine.dispose()


@dataclass
class Wired:
    """A manager behind an outbox of its own, with its relay."""

    url: str
    durable: Any
    relay: Relay
    ids: list[int]


@contextmanager
def wired(url: str, way: str, directory: Path) -> Iterator[Wired]:
    prepare(url)
    plain = WAYS[way](url)
    plain.log_trade("plain")
    plain.engine.dispose()
    manager = WAYS[way](url)
    config = OutboxConfig(backoff_base=0.05, backoff_cap=0.3, id_reserve=100)
    with Outbox.open(directory, config) as box:
        operations = [ManagerOperation("log_trade", creates="trades")]
        durable: Any = DurableDatabaseManager(manager, box, operations, wait_s=LONG)
        with Relay(box, PostgresTarget(url, durable.outbox_operations, config=config)) as relay:
            yield Wired(url, durable, relay, [])
            relay.stop()
        durable.detach_outbox()
        assert (box.status().dead_letters, box.status().alarms) == (0, {})
    manager.engine.dispose()


def test_calls_of_an_outage_leave_the_rows_of_the_plain_manager(own_postgres: PostgresServer, tmp_path: Path) -> None:
    """In every way: one call with PostgreSQL up, one while it is away, one after a restart of the server."""
    with ExitStack() as stack:
        running = {
            way: stack.enter_context(wired(own_postgres.create_database(f"way{number}"), way, tmp_path / str(number)))
            for number, way in enumerate(WAYS)
        }
        for one in running.values():
            one.ids.append(one.durable.log_trade("up"))
        own_postgres.stop()
        for one in running.values():
            one.ids.append(one.durable.log_trade("away"))
        own_postgres.start()
        for way, one in running.items():
            assert one.relay.drain(timeout=LONG), way
            one.ids.append(one.durable.log_trade("again"))
            plain = rows_of(one.url, "plain")
            assert [rows_of(one.url, symbol) for symbol in ("up", "away", "again")] == [plain] * 3, way
            schema, database = plain[0][0], one.url.rpartition("/")[2]
            found = own_postgres.execute(f"SELECT id FROM {schema}.trades WHERE id > 1 ORDER BY id", database=database)
            assert [id_ for (id_,) in found] == sorted(one.ids), way


def autocommitting(url: str) -> Manager:
    return Manager(engine(url, isolation_level="AUTOCOMMIT"))


REFUSED: dict[str, tuple[Configure, str]] = {
    "serializable": (lambda url: Manager(engine(url, isolation_level="SERIALIZABLE")), "are serializable"),
    "serializable by an option": (
        lambda url: Manager(engine(url).execution_options(isolation_level="REPEATABLE READ")), "are repeatable read",
    ),
    "serializable by a setting": (with_options("default_transaction_isolation=serializable"), "are serializable"),
    "autocommit": (autocommitting, "in autocommit"),
    "read-only": (with_options("default_transaction_read_only=on"), "are read-only"),
    "another database": (
        lambda url: Manager(engine(url.rpartition("/")[0] + "/postgres")), "to database 'postgres', the relay to",
    ),
    "several engines": (
        lambda url: Manager(engine(url), binds={Trade: engine(url), Base: create_engine("sqlite://")}),
        "several engines",
    ),
    "another database system": (lambda _: Manager(create_engine("sqlite://")), r"of sqlite\+"),
    "no engine": (lambda _: Manager(None), "have no engine"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("way", REFUSED)
def test_a_connection_that_cannot_be_taken_over_is_refused(postgres_url: str, way: str) -> None:
    """At the wiring, and where that was passed over the line stops instead of a wrong row."""
    configure, message = REFUSED[way]
    prepare(postgres_url)
    manager = configure(postgres_url)
    with pytest.raises(ConfigError, match=message):
        check_connection(manager, postgres_url)
    with replays(manager, postgres_url) as run, pytest.raises(TargetMisconfigured, match=message):
        run.call(ManagerOperation("log_trade"), symbol="x")
    assert rows_of(postgres_url, "x") == []
    if manager.engine is not None:
        manager.engine.dispose()


def test_a_role_that_the_relay_may_not_take_is_refused(own_postgres: PostgresServer) -> None:
    url = own_postgres.url()
    prepare(url)
    own_postgres.execute("CREATE ROLE lesser LOGIN; GRANT ALL ON SCHEMA public TO lesser")
    lesser = url.replace("postgres@", "lesser@") if "postgres@" in url else url
    manager = Manager(engine(url))
    with pytest.raises(ConfigError, match="cannot be taken over by the relay's .lesser.: permission denied"):
        check_connection(manager, lesser)
    with replays(manager, lesser) as run, pytest.raises(TargetMisconfigured, match="permission denied to set role"):
        run.call(ManagerOperation("log_trade"), symbol="x")
    manager.engine.dispose()


def test_an_unreachable_server_is_no_reason_to_refuse() -> None:
    url = "postgresql://postgres@127.0.0.1:1/none"
    check_connection(Manager(engine(url)), url)
    check_connection(Manager(engine(url)), None)


def test_another_login_of_a_lesser_role_is_taken_over(own_postgres: PostgresServer) -> None:
    url = own_postgres.url()
    prepare(url)
    own_postgres.execute("CREATE ROLE bot LOGIN; GRANT writer TO bot; ALTER ROLE bot SET search_path = bot")
    own_postgres.execute("ALTER ROLE bot SET timezone = 'America/New_York'")
    manager = Manager(engine(url.replace("postgres@", "bot@")))
    manager.log_trade("plain")
    check_connection(manager, url)
    with replays(manager, url) as run:
        run.call(ManagerOperation("log_trade"), symbol="first")
    plain = rows_of(url, "plain")
    assert plain[0][0] == "bot"
    assert rows_of(url, "first") == plain
    manager.engine.dispose()


def test_a_session_that_ends_its_connection_does_no_harm(postgres_url: str) -> None:
    """`commit` of the connection itself would commit the relay's transaction, receipts and all."""

    class Ending(Manager):
        def log_trade(self, symbol: str) -> int:
            with self.session_factory() as session:
                session.execute(select(Trade.id)).all()
                session.connection().commit()
            return 1

    prepare(postgres_url)
    manager = Ending(engine(postgres_url))
    with (
        replays(manager, postgres_url) as run,
        pytest.raises(TargetMisconfigured, match="ended the relay's transaction"),
    ):
        run.call(ManagerOperation("log_trade"), symbol="x")
    manager.engine.dispose()


def test_a_host_that_holds_its_pool_is_not_waited_for(postgres_url: str) -> None:
    prepare(postgres_url)
    manager = Manager(engine(postgres_url, pool_size=1, max_overflow=0, pool_timeout=2 * LONG))
    with manager.engine.connect(), replays(manager, postgres_url) as run:
        began = time.monotonic()
        run.call(ManagerOperation("log_trade"), symbol="x")
        assert time.monotonic() - began < LONG
    assert len(rows_of(postgres_url, "x")) == 1
    manager.engine.dispose()
