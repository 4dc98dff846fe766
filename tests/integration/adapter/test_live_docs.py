"""The pages for wired engines are right: their code runs, their tables are those of the code."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import text

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager, ManagerOperation
from outbox.integrations.operations import AFTER_DRAIN
from outbox.integrations.paper import DatabaseManager, PaperEngine, load
from outbox.integrations.preflight.records import with_records
from outbox.integrations.trading_engine import wire
from outbox.integrations.view.reads import LOCAL_READS
from outbox.testing import PostgresServer
from tests import atb as command_line
from tests.atb import run as atb
from tests.unit.fakes.database import query
from tests.unit.fakes.waiting import LONG

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "reference" / "manager.md").read_text(encoding="utf-8")
DATABASE_PAGE = (ROOT / "docs" / "reference" / "postgresql.md").read_text(encoding="utf-8")


def examples(page: str) -> list[str]:
    """The Python code of a page in docs/how-to."""
    text = (ROOT / "docs" / "how-to" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


NAMED, REPLACED, WIRED, BY_HAND, LEARNED, SEPARATE = examples("wire-an-engine.md")
OWN, TOLD, MAPPED, BY_ROLES, REPLACING, IN_A_RECORD, READS = examples("declare-methods.md")
(ASYNCIO,) = examples("asyncio.md")
STANDS_FOR_THE_ENGINE = """
import os
from outbox.integrations.paper import DatabaseManager, PaperEngine, load
"""


def run(code: str, folder: Path, url: str, **settings: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**env, "DATABASE_URL": url, **settings},
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_manager_with_another_factory_is_wired_by_a_subclass(postgres_url: str, tmp_path: Path) -> None:
    named = f"{NAMED}\nDatabaseManager = Store\n"
    made = "\nengine = PaperEngine(DatabaseManager(os.environ['DATABASE_URL']))\nbars = load()[:60]\n"
    code = STANDS_FOR_THE_ENGINE + named + REPLACED + made + WIRED
    assert run(code, tmp_path, postgres_url, OUTBOX_DIR="data/outbox") == "HEALTHY\n"


def test_answer_of_an_outage_is_declared_as_the_page_says() -> None:
    declared: dict[str, Any] = {}
    exec(TOLD, declared)  # noqa: S102 - the code of our own page
    assert declared["TICKETS"].answer_to({"ticket": {"ref": "A-1"}}, {}) == ("A-1", True)


def test_an_engine_is_wired_as_the_page_says(postgres_url: str, tmp_path: Path) -> None:
    made = "\nengine = PaperEngine(DatabaseManager(os.environ['DATABASE_URL']))\nbars = load()[:60]\n"
    out = run(STANDS_FOR_THE_ENGINE + REPLACED + made + WIRED, tmp_path, postgres_url, OUTBOX_DIR="data/outbox")
    assert out == "HEALTHY\n"
    assert query(postgres_url, "SELECT count(*) > 0 FROM trades") == [(True,)]


def test_what_was_learned_is_carried_over_as_the_page_says(postgres_url: str, tmp_path: Path) -> None:
    made = "\nengine = PaperEngine(DatabaseManager(os.environ['DATABASE_URL']))\nbars = load()[:60]\n"
    run(STANDS_FOR_THE_ENGINE + REPLACED + made + WIRED, tmp_path, postgres_url, OUTBOX_DIR="staging/outbox")
    written = atb("learned", "--dir", "staging/outbox", "--output", "learned.json", cwd=tmp_path)
    assert written.returncode == 0
    imported = "from outbox.integrations.trading_engine import wire\n"
    code = STANDS_FOR_THE_ENGINE + REPLACED + made + imported + LEARNED
    run(code.replace("load()[:60]", "load()[:2]"), tmp_path, postgres_url, OUTBOX_DIR="live/outbox")
    assert "log_position" in atb("learned", "--dir", "live/outbox", cwd=tmp_path).stdout


def test_the_example_of_the_readme_with_an_engine_runs(postgres_url: str, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.findall(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)[1]
    before = STANDS_FOR_THE_ENGINE + "Engine, bars, url = PaperEngine, load()[:60], os.environ['DATABASE_URL']\n"
    run(before + example, tmp_path, postgres_url, OUTBOX_DIR="data/outbox")
    assert query(postgres_url, "SELECT count(*) > 0 FROM trades") == [(True,)]


def test_the_parts_by_hand_work(postgres_url: str, tmp_path: Path) -> None:
    assert run(STANDS_FOR_THE_ENGINE + BY_HAND, tmp_path, postgres_url) == "1000.0\n"


def test_own_methods_are_declared_as_the_page_says(postgres_url: str, outbox_dir: Path) -> None:
    class Manager(DatabaseManager):
        def log_funding(self, funding_id: str, amount: float) -> bool:
            return self.update_balance(amount, f"funding {funding_id}")

        def log_signal(self, text: str) -> int | None:
            return self.log_event("signal", text)

    names: dict[str, Any] = {}
    exec(OWN, names)  # noqa: S102 - the code of our own page
    manager = Manager(postgres_url)
    with Outbox.open(outbox_dir) as box:
        durable: Any = DurableDatabaseManager(manager, box, names["OPERATIONS"])
        with Relay(box, PostgresTarget(postgres_url, durable.outbox_operations)):
            durable.create_trading_session("s", "IBM", "1d", "paper", 1000)
            for _ in range(2):
                assert durable.log_funding("f1", 5.0) is True
            assert durable.log_signal("up") is not None
        durable.detach_outbox()
    manager.close()
    assert query(postgres_url, "SELECT count(*) FROM account_balances") == [(1,)]


def test_reads_of_the_page_are_answered_in_an_outage(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    class Manager(DatabaseManager):
        def get_cash(self, desk: int) -> float:
            return self.get_current_balance(desk)

        def open_desk(self) -> int | None:
            return self.get_active_session_id()

        def get_system_halt(self) -> bool:
            with self.get_session() as session:
                return bool(session.scalar(text("SELECT false")))

        def count_trades(self) -> int:
            with self.get_session() as session:
                return int(session.scalar(text("SELECT count(*) FROM trades")) or 0)

    names: dict[str, Any] = {}
    exec(READS, names)  # noqa: S102 - the code of our own page
    engine: Any = PaperEngine(Manager(own_postgres.url()))
    config = OutboxConfig(dir=str(outbox_dir), database_url=own_postgres.url())
    with wire(engine, config=config, operations=names["OPERATIONS"], drain_s=0.1) as wiring:
        manager = engine.db_manager
        session_id = manager.create_trading_session("s", "IBM", "1d", "paper", 1000)
        manager.update_balance(1000, "start")
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
        own = (manager.get_cash(session_id), manager.open_desk(), manager.get_system_halt())
        own_postgres.kill()
        assert own == (1000.0, session_id, False)
        assert (manager.get_cash(session_id), manager.open_desk(), manager.get_system_halt()) == own
        assert manager.outbox_age_s("get_system_halt") >= 0


def test_a_relay_of_its_own_process_delivers(postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "mymodule.py").write_text(STANDS_FOR_THE_ENGINE + SEPARATE)
    engine = PaperEngine(DatabaseManager(postgres_url))
    config = OutboxConfig(dir=str(tmp_path / "store"), database_url=postgres_url)
    with wire(engine, config=config, relay_here=False) as wiring:
        engine.start()
        engine.run(load()[:40])
        assert wiring.outbox is not None
        pending = wiring.outbox.status().pending
        assert pending > 5
        given = {"DATABASE_URL": postgres_url, "OUTBOX_OPERATIONS": "mymodule:operations"}
        done = command_line.run("drain", "--dir", str(tmp_path / "store"), cwd=tmp_path, **given)
        assert done.returncode == 0, done.stderr
        status = wiring.outbox.status()
        assert (status.pending, status.completed, status.dead_letters) == (0, pending, 0)
    manager: Any = engine.db_manager
    assert manager.get_active_session_id() == engine.session_id
    manager.close()


def described() -> dict[str, tuple[str, str]]:
    """The page's table of methods: same intent when, returns during an outage."""
    rows = [re.split(r" \| ", line.strip("| ")) for line in PAGE.partition("## Method by method")[2].splitlines()]
    return {row[0].strip("`"): (row[1], row[2]) for row in rows if len(row) == 3 and row[0].startswith("`")}


def test_every_operation_is_in_the_table_of_methods() -> None:
    assert list(described()) == [operation.name for operation in TRADING_OPERATIONS]


@pytest.mark.parametrize("operation", TRADING_OPERATIONS, ids=lambda operation: operation.name)
def test_the_table_of_methods_is_that_of_the_code(operation: ManagerOperation) -> None:
    same, returned = described()[operation.name]
    alternatives = ["`, `".join(names) for names in operation.alternatives]
    assert same == ("same `" + "`, or else `".join(alternatives) + "`" if alternatives else "never")
    if operation.context:
        assert returned.startswith("yields")
    else:
        assert returned == ("the final id" if operation.creates else str(operation.returns))
    assert operation.best_effort == (operation in TRADING_OPERATIONS[-4:])


def test_a_manager_with_other_names_is_declared_as_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "declared.py").write_text(MAPPED, encoding="utf-8")
    made = runpy.run_path(str(tmp_path / "declared.py"))
    assert [operation.id_column for operation in made["OPERATIONS"][:2]] == [
        ("trading", "sessions", "id"),
        ("trading", "trades", "id"),
    ]
    assert made["OPERATIONS"][2].amount_of({"delta": 5}) == 5


def test_methods_that_are_never_queued_and_local_reads_are_named() -> None:
    assert [name for name in (*AFTER_DRAIN, *LOCAL_READS) if f"`{name}`" not in PAGE] == []


def test_the_permissions_of_the_page_are_enough(own_postgres: PostgresServer, tmp_path: Path) -> None:
    url = own_postgres.url()
    manager = DatabaseManager(url)
    manager.close()
    query(url, "CREATE ROLE engine LOGIN PASSWORD 'p'; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    prepared, *_ = re.findall(r"^```sql\n(.*?)^```$", DATABASE_PAGE, re.DOTALL | re.MULTILINE)
    query(url, prepared)
    query(url, "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO engine")
    query(url, "GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public TO engine")
    query(url, "REVOKE INSERT, UPDATE, SELECT ON outbox_receipts FROM engine")
    query(url, prepared)
    restricted = url.replace("postgres@", "engine:p@")
    assert restricted != url
    assert run(STANDS_FOR_THE_ENGINE + BY_HAND, tmp_path, restricted) == "1000.0\n"
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        query(restricted, "DELETE FROM outbox_receipts")


def test_methods_are_declared_by_their_roles_as_the_page_says() -> None:
    declared: dict[str, Any] = {}
    exec(BY_ROLES, declared)  # noqa: S102 - the page's own example
    assert next(operation.name for operation in declared["OPERATIONS"]) == "charge"
    exec(REPLACING, declared)  # noqa: S102 - as above
    assert declared["REPLACE"].own_name("order_id") == "old_id"


def test_fields_of_a_dict_are_declared_as_the_page_says() -> None:
    class Desk:
        def save_fill(self, fill: dict[str, Any]) -> Any:
            return {**fill}

    declared: dict[str, Any] = {}
    exec(IN_A_RECORD, declared)  # noqa: S102 - the page's own example
    (operation,) = with_records([declared["FILL"]], Desk)
    call = {"fill": {"lot": 7, "pnl": Decimal(3)}}
    assert (operation.standard(call)["position_id"], operation.amount_of(call)) == (7, 3)
