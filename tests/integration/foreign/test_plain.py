"""The foreign engines on their plain managers: they trade, go on after a restart, and do the same in each run."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbox.testing import PostgresServer

from .compare import Run, answer_differences, table_differences, told
from .contract import SCRIPTS, perform
from .journal import Journal, lines
from .kinds import CLASSIC, KINDS, TYPED
from .lives import Life, PlainLife
from .schedule import Schedule, trade

SHORT = Schedule(bars=76, kill_engine=(40,))


@pytest.mark.parametrize("kind", KINDS)
def test_two_plain_runs_are_equal(kind: str, postgres_server: PostgresServer, tmp_path: Path) -> None:
    """Otherwise a difference between a plain and a durable run would mean nothing."""
    one = trade(kind, "plain", SHORT, postgres_server, tmp_path / "one").run
    other = trade(kind, "plain", SHORT, postgres_server, tmp_path / "other").run
    differences = answer_differences(one, other)
    assert not differences, told(differences)
    differences = table_differences(one, other)
    assert not differences, told(differences)
    empty = [name for name, rows in one.tables.items() if not rows]
    assert empty in ([], ["system_halt"])


CHANGES = {
    "DELETE FROM system_events WHERE id = 3": "system_events: missing in the durable run: id=untold",
    "UPDATE trades SET pnl = pnl + 0.00000001 WHERE id = 2": "differs in the durable run: pnl=",
    "UPDATE positions SET last_update = last_update + interval '1 second'": "positions.last_update",
    "UPDATE account_balances SET last_updated = now()": "account_balances.last_updated",
    r"UPDATE trading_sessions SET session_name = regexp_replace(session_name, '_\d{4}', '_1996')": (
        "trading_sessions.session_name"
    ),
    "UPDATE trades SET id = id + 1000 WHERE id = 1": "differs in the durable run: id=trades number 0 is id=untold",
}


def test_comparison_of_changed_tables_finds_the_changes(postgres_server: PostgresServer, tmp_path: Path) -> None:
    """The judge of the outage runs sees a row less, another amount, another time and another id."""
    made = trade("classic", "plain", Schedule(bars=40), postgres_server, tmp_path / "one")
    one, url = made.run, postgres_server.url(made.database)
    differences = table_differences(one, one)
    assert not differences, told(differences)
    for change, wanted in CHANGES.items():
        postgres_server.execute(change, database=made.database)
        changed = Run(CLASSIC.shape, lines(tmp_path / "one" / "journal"), url)
        assert wanted in "\n".join(table_differences(one, changed)), change


def test_fills_of_a_position_are_kept_in_it(postgres_server: PostgresServer, tmp_path: Path) -> None:
    """Their keys are told to nobody, so the comparison of runs leaves the column out."""
    run = trade("typed", "plain", Schedule(bars=20), postgres_server, tmp_path / "one").run
    assert run.shape is TYPED.shape
    assert loose_fills(run) == []


def loose_fills(run: Run) -> list[str]:
    """Positions whose array of fills is not that of the table."""
    return [
        f"position {row['id']} has {row['fills']}"
        for row in run.tables["trading.open_positions"]
        if row["fills"] != [fill["id"] for fill in run.tables["trading.fills"] if fill["position_id"] == row["id"]]
    ]


@pytest.mark.parametrize("kind", SCRIPTS)
def test_contract_runs_through_on_the_plain_manager(kind: str, postgres_url: str, tmp_path: Path) -> None:
    """Each refusal in it is one of the manager or of PostgreSQL, not a mistake of the script."""
    manager = KINDS[kind].manager(postgres_url)
    perform(kind, manager, Journal(tmp_path / "journal"))
    manager.engine.dispose()
    said = lines(tmp_path / "journal")
    refusals = {line["raised"] for line in said if "raised" in line}
    assert refusals <= {
        "ValueError",
        "IntegrityError",
        "DataError",
        "TypeError",
        "LookupError",
        "OverdrawnError",
        "NoResultFound",
    }
    assert sum("raised" in line for line in said) < len(said) / 4


@pytest.mark.parametrize("kind", KINDS)
def test_random_life_repeats_itself_on_the_plain_manager(
    kind: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """A seed makes the same calls, none of which the plain manager fails at unexpectedly."""
    runs: list[Run] = []
    for name in ("one", "other"):
        database = f"{kind}_{name}_{tmp_path.name}".lower()
        url = postgres_server.create_database(database)
        try:
            life = PlainLife(lambda url=url: KINDS[kind].manager(url))  # type: ignore[misc]
            Life(kind, 3, 100).live(Journal(tmp_path / name), life.manager, life).engine.dispose()
            runs.append(Run(KINDS[kind].shape, lines(tmp_path / name), url))
        finally:
            postgres_server.drop_database(database)
    one, other = runs
    differences = [*answer_differences(one, other), *table_differences(one, other)]
    assert not differences, told(differences)
    refusals = {line["raised"] for line in one.lines if "raised" in line}
    assert refusals <= {"ValueError", "LookupError", "OverdrawnError"}
