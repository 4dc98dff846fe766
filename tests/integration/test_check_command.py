"""`atb outbox check`: a table, exit codes, and nothing of the manager is run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from click.testing import Result

from tests import atb as command_line

_HOST = """
from sqlalchemy import column, create_engine, insert, table, text
from sqlalchemy.orm import sessionmaker
from outbox.integrations.durable import DurableDatabaseManager, ManagerOperation, ManagerRead

print("imported")

class Manager:
    def __new__(cls, *args):
        raise RuntimeError("made")
    def __init__(self, url):
        self.engine = create_engine(url)
        self.session_factory = sessionmaker(bind=self.engine)
    def log_trade(self, symbol):
        with self.session_factory.begin() as session:
            trades = table("trades", column("id"), column("symbol"))
            return session.execute(insert(trades).values(symbol=symbol).returning(trades.c.id)).scalar()

class Wider(Manager):
    def cancel_order(self, order_id):
        with self.session_factory.begin() as session:
            session.execute(text("DELETE FROM orders WHERE id = :id"), {"id": order_id})

class Renamed(Manager):
    def update_balance(self, amount, update_reason, updated_by, session_id):
        return True
    def write_down_every_single_fill_of_a_day(self):
        return self.log_trade("X")

class Misfit(Manager):
    async def log_trade(self, symbol):
        return 1

class Reader(Manager):
    def get_cash(self, desk):
        with self.session_factory() as session:
            return session.execute(text("SELECT 1")).scalar()

Durable = DurableDatabaseManager.of(Wider)
READS = [
    ManagerOperation("log_trade", creates="trades.id"),
    ManagerRead("get_cash", like="get_current_balance", args={"desk": "session_id"}),
]
MISREADS = [READS[0], ManagerRead("get_cash", like="get_balance", args={"desk": "session_id"})]
OPERATIONS = [ManagerOperation("log_trade", creates="history.id")]
NUMBER = 7
"""

Check = Callable[..., Result]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Check]:
    (tmp_path / "host_of_check.py").write_text(_HOST)
    for name in [name for name in os.environ if name.startswith(("OUTBOX_", "DATABASE_URL"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(name: str, *options: str) -> Result:
        return command_line.invoke("check", f"host_of_check:{name}", *options)

    yield run
    sys.modules.pop("host_of_check", None)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("Manager", 0, "fits: Manager: 1 method durable, 0 pass"),
        ("Wider", 1, "fits, with warnings: Wider: 1 method durable, 1 pass; look like writes and pass: cancel_order"),
        ("Durable", 1, "fits, with warnings: Wider:"),
        ("Misfit", 2, "refused: Misfit: 0 methods durable, 0 pass, 1 refused"),
    ],
)
def test_check_exits_with_what_it_found(check: Check, name: str, code: int, said: str) -> None:
    done = check(name)
    assert (done.exit_code, said in done.stdout) == (code, True), done.stdout


def test_check_shows_a_declared_read_as_read_locally(check: Check) -> None:
    done = check("Reader", "--operations", "host_of_check:READS", "--json")
    assert done.exit_code == 0
    shown = {"name": "get_cash", "kind": "read locally", "reason": "as get_current_balance", "warning": ""}
    assert shown in json.loads(done.stdout)["methods"]
    refused = check("Reader", "--operations", "host_of_check:MISREADS")
    assert refused.exit_code == 2
    assert "1 refused" in refused.stdout


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Missing", (), "host_of_check has no Missing"),
        ("NUMBER", (), "which is no class"),
        ("Manager", ("--operations", "host_of_check:NUMBER"), "an iterable of Operation"),
        ("Manager", ("--database-url", "mysql://trader:s3cret@x/y"), "'mysql'"),
    ],
)
def test_check_says_in_one_sentence_what_is_wrong(check: Check, name: str, options: tuple[str, ...], said: str) -> None:
    done = check(name, *options)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "s3cret" not in done.stderr
    assert done.stdout == ""


def test_check_cuts_nothing_of_the_way_out(check: Check) -> None:
    done = check("Renamed")
    assert done.exit_code == 2
    assert "args={" in done.stdout
    assert "\u2026" not in done.stdout


def test_check_prints_json_and_nothing_else(check: Check) -> None:
    done = check("Wider", "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["fits"], found["manager"], found["faults"]) == (True, "Wider", [])
    assert found["methods"] == [
        {
            "name": "cancel_order",
            "kind": "passes",
            "reason": "",
            "warning": "it looks like a write, and is not durable",
        },
        {"name": "log_trade", "kind": "durable", "reason": "ids of trades.id", "warning": ""},
    ]
    assert found["warnings"] == ["cancel_order: it looks like a write, and is not durable"]


def test_check_looks_into_the_catalog(check: Check, postgres_url: str) -> None:
    done = check("Manager", "--database-url", postgres_url, "--json")
    said = " ".join(done.stdout.replace("\u2502", " ").split())
    assert "table trades does not exist: create it, or declare the one that is written" in said
    assert done.exit_code == 2
    with psycopg2.connect(postgres_url) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE trades (id serial, symbol text); CREATE TABLE history (id serial)")
    connection.close()
    assert check("Manager", "--database-url", postgres_url).exit_code == 0
    options = ("--operations", "host_of_check:OPERATIONS", "--database-url", postgres_url, "--json")
    assert "ids of history.id" in check("Manager", *options).stdout


def test_a_database_that_is_away_is_a_warning(check: Check) -> None:
    done = check("Manager", "--database-url", "postgresql://trader:s3cret@127.0.0.1:1/x")
    assert done.exit_code == 1
    assert "PostgreSQL was not asked for the tables" in done.stdout
    assert "s3cret" not in done.stdout
