"""Scenario `steady`: a day of even traffic in simulated time; how large does the file become?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from outbox import Operation, Outbox, Relay
from outbox.clock import SystemClock
from outbox.store.envelope import Record
from outbox.target import Outcome

from .measure import Goal, Result, Setting, require_same
from .workload import START, TICK, config, fill, tick

_HOURS = 24
_RETENTION_HOURS = 2.0
# When the ledger has been full for a while.
_SETTLED_HOUR = 6


class _DayClock(SystemClock):
    """Time that passes when told."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def monotonic(self) -> float:
        return self.passed_s

    def now(self) -> datetime:
        return START + timedelta(seconds=self.passed_s)


class _Accepts:
    """A target that applies everything at once: only the file matters here."""

    operations: Mapping[str, Operation] = {TICK.name: TICK}
    lanes = 1

    def apply(self, store_id: UUID, records: Sequence[Record]) -> Outcome:
        return Outcome(completed=[(record, b"") for record in records])

    def interrupt(self) -> None: ...
    def close(self) -> None: ...


def run(setting: Setting) -> Result:
    clock, per_minute, step = _DayClock(), setting.sizes.steady_per_minute, setting.sizes.steady_step
    curve: list[tuple[float, float]] = []
    folder = setting.folder("steady") / "outbox"
    settings = config(retention_hours=_RETENTION_HOURS, min_free_mb=0)
    with Outbox.open(folder, settings, [TICK], clock=clock) as box:
        relay = Relay(box, _Accepts())
        made = 0
        for hour in range(1, _HOURS + 1):
            setting.say(f"simulated hour {hour} of {_HOURS}")
            for _ in range(0, 60, step):
                clock.passed_s += 60 * step
                made += fill(box, TICK, (tick(number) for number in range(made, made + per_minute * step)))
                while relay.step(clock.monotonic()) <= 0:
                    continue
            curve.append((hour, box.status().file_bytes / 2**20))
        status = box.status()
        require_same("entries completed in a day", status.completed, made)
        relay.stop()
        box.compact(vacuum=True)
        after = box.status().file_bytes / 2**20
        kept = box.status().ledger
    size = dict(curve)
    return Result(
        scenario="steady",
        title=f"A simulated day of {per_minute} entries a minute, {_RETENTION_HOURS:.0f} hours kept",
        reference="",
        tabled=False,
        lines=[],
        goals=[
            Goal(
                text=f"file size after {_HOURS} hours / after {_SETTLED_HOUR}",
                value=size[_HOURS] / size[_SETTLED_HOUR],
                limit=1.1,
                judged=setting.sizes.judges,
                question=f"The file after a day of {per_minute} entries a minute, {_RETENTION_HOURS:.0f} hours kept",
                answer="{value:.2f} times its size after " + f"{_SETTLED_HOUR} hours",
            )
        ],
        notes=[
            f"{made:,} entries passed through; {status.ledger:,} are in the ledger at the end",
            ", ".join(f"{size[hour]:.1f} MiB after hour {hour}" for hour in (1, _SETTLED_HOUR, _HOURS)),
            f"rewritten by `compact --vacuum`: {after:.1f} MiB for {kept:,} entries",
        ],
        curves={"size of the data file": curve},
        axes=("simulated hours", "MiB"),
    )
