"""Scenario `end_to_end`: PostgreSQL is up and the relay idle; how long from a call until its row is visible there."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from uuid import UUID

from outbox import Operation, Outbox, PostgresTarget, Relay
from outbox.store.envelope import Record
from outbox.target import Outcome

from .measure import Goal, NotTheSameWork, Result, Setting, clock, line, median, require_same, timed
from .workload import TRADE, TRADE_COLUMNS, config, create_table, execute, trade
from .writers import Psycopg2

_DIRECT, _OUTBOX, _ACKNOWLEDGED = (
    "psycopg2 INSERT + COMMIT",
    "outbox, until PostgreSQL has it",
    "outbox, until enqueue returns",
)
_PATIENCE_S = 30.0
# The relay has settled the entry and waits again.
_IDLE_S = 0.002


class _TimedTarget(PostgresTarget):
    """Notes when a batch was committed: `apply` returns behind PostgreSQL's answer to COMMIT."""

    committed_at = 0.0
    committed: threading.Event

    def apply(self, store_id: UUID, records: Sequence[Record]) -> Outcome:
        outcome = super().apply(store_id, records)
        self.committed_at = clock()
        self.committed.set()
        return outcome


def run(setting: Setting) -> Result:
    setting.say("timing single rows from end to end")
    samples: dict[str, list[float]] = {_DIRECT: [], _ACKNOWLEDGED: [], _OUTBOX: []}
    create_table(setting.url, "trades", TRADE_COLUMNS)
    direct = Psycopg2(setting.folder("direct"), setting.url)
    operations: list[Operation] = [TRADE]
    target = _TimedTarget(setting.url, operations, config=config())
    target.committed = threading.Event()
    pause = threading.Event()
    with Outbox.open(setting.folder("end-to-end") / "outbox", config(), operations) as box, Relay(box, target):
        for number in range(-1, setting.sizes.end_to_end):
            args = trade(number + 1)
            seconds = timed(lambda: direct.write(number, args))  # noqa: B023 - called at once
            target.committed.clear()
            begin = clock()
            box.enqueue(TRADE.name, args)
            acknowledged = clock()
            if not target.committed.wait(_PATIENCE_S):
                raise NotTheSameWork(f"outbox: row {number} did not arrive within {_PATIENCE_S:.0f} s")
            while box.store.figures().pending:
                pause.wait(_IDLE_S)
            pause.wait(_IDLE_S)
            if number >= 0:  # the first one of each connects
                samples[_DIRECT].append(seconds)
                samples[_ACKNOWLEDGED].append(acknowledged - begin)
                samples[_OUTBOX].append(target.committed_at - begin)
    rows = setting.sizes.end_to_end + 1
    require_same("outbox: rows", execute(setting.url, "SELECT count(*) FROM trades")[0][0], rows)
    require_same("psycopg2: rows", direct.rows(), rows)
    direct.close()
    middle = {name: median(times) for name, times in samples.items()}
    return Result(
        scenario="end_to_end",
        title="From the call until the row is in PostgreSQL, relay idle",
        reference=_DIRECT,
        tabled=False,
        lines=[line(name, times, ratio=middle[name] / middle[_DIRECT]) for name, times in samples.items()],
        goals=[
            Goal(
                text="outbox until visible / psycopg2 INSERT + COMMIT, median",
                value=middle[_OUTBOX] / middle[_DIRECT],
                limit=3,
                judged=setting.sizes.judges,
                question="From the call until the row is in PostgreSQL",
                answer="{value:.2f} times INSERT and COMMIT",
            )
        ],
        notes=["visible: when PostgreSQL's answer to the relay's COMMIT has arrived, which is later than the row is"],
    )
