"""Scenario `transaction`: ten entries that belong together, against one."""

from __future__ import annotations

from outbox import Outbox

from .measure import Goal, Result, Setting, line, median, require_same, timed, turns
from .workload import TRADE, config, trade
from .writers import BareLmdb

_ONE, _TEN, _BARE_TEN = "outbox, one entry", "outbox, a transaction of 10", "bare LMDB transaction, 10 entries"
_TURN = 10


def run(setting: Setting) -> Result:
    setting.say("timing transactions of ten")
    samples: dict[str, list[float]] = {_ONE: [], _TEN: [], _BARE_TEN: []}
    made = 0
    bare = BareLmdb(setting.folder("transaction-bare"), "")
    with Outbox.open(setting.folder("transaction") / "outbox", config(), [TRADE]) as box:
        for name in turns(max(1, setting.sizes.transactions // _TURN), list(samples)):
            for _ in range(_TURN):
                trades = [trade(made + number) for number in range(10)]
                if name == _ONE:
                    samples[name].append(timed(lambda: box.enqueue(TRADE.name, trades[0])))  # noqa: B023 - called at once
                elif name == _TEN:
                    samples[name].append(timed(lambda: _together(box, trades)))  # noqa: B023 - called at once
                else:
                    samples[name].append(timed(lambda: bare.write_many(10)))
                made += 10
        expected = len(samples[_ONE]) + 10 * len(samples[_TEN])
        require_same("outbox: rows", sum(1 for _ in box.pending()), expected)
    require_same("bare LMDB: rows", bare.rows(), 10 * len(samples[_BARE_TEN]))
    bare.close()
    middle = {name: median(times) for name, times in samples.items()}
    return Result(
        scenario="transaction",
        title="A transaction of 10 trades, durable when its block ends",
        reference=_ONE,
        lines=[line(name, times, ratio=middle[name] / middle[_ONE]) for name, times in samples.items()],
        tabled=False,
        goals=[
            Goal(
                text="a transaction of 10 / one entry, median",
                value=middle[_TEN] / middle[_ONE],
                limit=1.7,
                judged=setting.sizes.judges,
                question="A transaction of ten entries",
                answer="{value:.1f} times one entry",
            )
        ],
    )


def _together(box: Outbox, trades: list[dict[str, object]]) -> None:
    with box.transaction() as tx:
        for args in trades:
            tx.enqueue(TRADE.name, args)
