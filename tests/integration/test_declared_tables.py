"""Operations on a `sqlalchemy.Table`: served as SQLAlchemy would, or refused before anything is stored."""

from __future__ import annotations

import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import ConfigError, InvalidEntry, Operation
from tests.unit.fakes.bench import Bench, completed

META = sa.MetaData()
KEYED = sa.Table(
    "keyed",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("class", sa.Text, key="class_", nullable=False),
)
CALLED = sa.Table(
    "called", META, sa.Column("id", sa.Uuid, primary_key=True, default=uuid.uuid4), sa.Column("symbol", sa.Text)
)
CONSTANT = sa.Table(
    "constant",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("paper", sa.Boolean, nullable=False, default=False),
    sa.Column("price", sa.Numeric(18, 8), default=Decimal("1.5")),
)
COMPUTED = sa.Table(
    "computed",
    META,
    sa.Column("id", sa.Integer, sa.Identity(always=True), primary_key=True),
    sa.Column("quantity", sa.Numeric(18, 8)),
    sa.Column("twice", sa.Numeric, sa.Computed("quantity * 2")),
)
TEXT_KEY = sa.Table("text_key", META, sa.Column("oid", sa.Text, primary_key=True), sa.Column("symbol", sa.Text))
SEQUENCE = sa.Table("by_sequence", META, sa.Column("id", sa.Integer, sa.Sequence("ids"), primary_key=True))
BY_SQL = sa.Table("by_sql", META, sa.Column("id", sa.Integer), sa.Column("at", sa.DateTime, default=sa.func.now()))
CHILD = sa.Table("child", META, sa.Column("id", sa.Integer, sa.ForeignKey("keyed.id"), primary_key=True))
DOTTED = sa.Table("my.trades", META, sa.Column("id", sa.Integer, primary_key=True), sa.Column('a%b"c', sa.Text))
SCHEMA = sa.Table("T.x", META, sa.Column("id", sa.Integer, primary_key=True), schema="My Schema")
DOCUMENT = sa.Table("documents", META, sa.Column("id", sa.Integer, primary_key=True), sa.Column("body", sa.JSON))

SERVED: list[tuple[sa.Table, dict[str, Any]]] = [
    (KEYED, {"id": 1, "class_": "A"}),
    (CALLED, {"id": uuid.UUID(int=7), "symbol": "BTC"}),
    (CONSTANT, {"id": 1}),
    (CONSTANT, {"paper": True, "price": None}),
    (COMPUTED, {"quantity": Decimal("1.5")}),
    (TEXT_KEY, {"oid": "A-2", "symbol": "ETH"}),
    (SEQUENCE, {"id": 5}),
    (DOTTED, {"id": 1, 'a%b"c': "x"}),
    (SCHEMA, {"id": 1}),
    (DOCUMENT, {"id": 1, "body": '{"a": 1}'}),
    (DOCUMENT, {"id": 1, "body": {"a": [1, None]}}),
]


@pytest.mark.parametrize(("table", "row"), SERVED, ids=lambda value: getattr(value, "name", None))
def test_row_is_stored_as_sqlalchemy_would(
    postgres_url: str, outbox_dir: Path, table: sa.Table, row: dict[str, Any]
) -> None:
    engine = sa.create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg2://"))
    with engine.begin() as connection:
        connection.execute(sa.text('CREATE SCHEMA "My Schema"'))
        META.create_all(connection)
        connection.execute(sa.insert(table), row)
        expected = connection.execute(sa.select(table)).all()
        connection.execute(sa.delete(table))
        if table is COMPUTED or (table is CONSTANT and "id" not in row):
            connection.execute(sa.text(f"ALTER SEQUENCE {table.name}_id_seq RESTART"))
    with Bench(outbox_dir, postgres_url, Operation("write", table=table)) as bench:
        assert completed(bench.apply(bench.enqueue("write", row))) == [1]
    with engine.connect() as connection:
        assert connection.execute(sa.select(table)).all() == expected
    engine.dispose()


def test_column_may_be_given_by_its_name_too(postgres_url: str, outbox_dir: Path) -> None:
    operation = Operation("write", table=KEYED, identity="class_", order_by="class_")
    with Bench(outbox_dir, postgres_url, operation) as bench:
        first = bench.box.enqueue("write", {"id": 1, "class_": "A"})
        again = bench.box.enqueue("write", {"id": 1, "class": "A"})
        assert first.seq == again.seq
        assert (first.args, first.order_by) == ({"id": 1, "class": "A"}, "A")
        found = bench.box.lookup("write", {"class_": "A"})
        assert found is not None
        assert found.seq == first.seq


@pytest.mark.parametrize(
    ("table", "row", "why"),
    [
        (KEYED, {"id": 1}, "column 'class' must not be empty"),
        (KEYED, {"id": 1, "class": "A", "class_": "A"}, "column 'class' is given twice"),
        (KEYED, {"id": 1, "klass": "A"}, "has no column 'klass'"),
        (CALLED, {"symbol": "BTC"}, "column 'id' must be given"),
        (BY_SQL, {"id": 1}, "column 'at' must be given"),
        (SEQUENCE, {}, "column 'id' must be given"),
        (CONSTANT, {"paper": None}, "column 'paper' must not be empty"),
        (COMPUTED, {"quantity": 1, "twice": 2}, "'twice' is always made by PostgreSQL"),
        (COMPUTED, {"id": 1, "quantity": 1}, "'id' is always made by PostgreSQL"),
        (TEXT_KEY, {"symbol": "BTC"}, "column 'oid' must not be empty"),
        (CHILD, {}, "column 'id' must not be empty"),
    ],
)
def test_row_that_could_not_be_served_is_refused_at_enqueue(
    postgres_url: str, outbox_dir: Path, table: sa.Table, row: dict[str, Any], why: str
) -> None:
    with Bench(outbox_dir, postgres_url, Operation("write", table=table)) as bench:
        with pytest.raises(InvalidEntry, match=why):
            bench.enqueue("write", row)
        assert bench.box.status().pending == 0


def test_identity_that_is_no_column_is_refused_at_declaration() -> None:
    with pytest.raises(ConfigError, match="'klass' is not a column of keyed"):
        Operation("write", table=KEYED, identity="klass")
