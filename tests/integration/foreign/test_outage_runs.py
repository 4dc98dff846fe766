"""The foreign engines trade through outages, kills and restarts as on the plain manager, compared table by table.

`FOREIGN=all` runs the long version too, with several outages in 400 bars.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.testing import PostgresServer

from .compare import answer_differences, table_differences, told
from .kinds import KINDS
from .schedule import Outcome, Schedule, trade
from .test_foreign_contract import HEALTHY
from .test_plain import loose_fills

# Each kind of call was seen before the first outage, in which the engine is killed and started again.
SCHEDULES = {
    "short": Schedule(bars=60, kill_postgres=(42,), kill_engine=(48,), start_postgres=(54,)),
    "long": Schedule(
        bars=400,
        kill_postgres=(100, 190, 260, 330),
        kill_engine=(115, 150, 215, 300, 345),
        start_postgres=(130, 240, 275, 380),
    ),
}
MODES = ("write_through", "write_behind")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(no_leftovers: None) -> Iterator[PostgresServer]:
    with PostgresServer(fsync=False) as server:
        yield server


@pytest.fixture(scope="module")
def plain_runs() -> dict[tuple[str, str], Outcome]:
    return {}


@pytest.mark.parametrize("length", SCHEDULES if os.environ.get("FOREIGN") == "all" else ["short"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_engine_trades_through_outages_as_on_the_plain_manager(
    kind: str,
    mode: str,
    length: str,
    server: PostgresServer,
    tmp_path: Path,
    plain_runs: dict[tuple[str, str], Outcome],
) -> None:
    schedule = SCHEDULES[length]
    if (kind, length) not in plain_runs:
        plain_runs[kind, length] = trade(kind, "plain", schedule, server, tmp_path / "plain")
    plain, durable = plain_runs[kind, length], trade(kind, mode, schedule, server, tmp_path / mode)
    assert (plain.failed, durable.failed) == (None, None)
    differences = [*answer_differences(plain.run, durable.run), *table_differences(plain.run, durable.run)]
    assert not differences, told(differences)
    assert durable.status.items() >= HEALTHY.items()
    if kind == "typed":
        assert loose_fills(durable.run) == []
