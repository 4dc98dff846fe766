"""OutboxStatus: the state of an outbox, readable from any process, and the source of each field."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from enum import IntEnum
from typing import Any

from ..clock import Clock
from ..config import OutboxConfig
from ..store.envelope import from_us, to_us
from ..store.locks import Role, holder
from ..store.own_files import StateFile
from ..store.reads import FORGOTTEN
from ..store.store import AHEAD_US, Store
from .held_back import LOOKED_AT, HeldBackCount
from .notices import Notice
from .notices import parse as parse_notices
from .pause import Pause
from .pause import parse as parse_pause
from .rates import Rates, Room, measure


class Health(IntEnum):
    """The exit code of `atb outbox status`."""

    HEALTHY = 0
    DEGRADED = 1
    NEEDS_OPERATOR = 2


@dataclass(frozen=True, kw_only=True)
class RelayStatus:
    """What the relay last said of itself, and whether its process still holds the relay's role."""

    # Whether some process holds the relay's role now.
    alive: bool = False
    pid: int | None = None
    # closed, open or half-open; unknown where no relay ever reported.
    breaker: str = "unknown"
    # True while PostgreSQL refuses and an operator must act.
    stopped: bool = False
    # For how many seconds entries have waited while nothing moved; 0 in a pause.
    late_s: float = 0.0
    # True when it is alive, entries wait, and for `stuck_after` seconds nothing moved and no delivery failed.
    stuck: bool = False
    # Why its thread died, or None.
    died: str | None = None
    last_error: str | None = None
    # When that began, and when the relay last said something of itself.
    since: datetime | None = None
    said_at: datetime | None = None
    # Sequence number of an entry that took too long or failed again and again, though it was alone in its transaction.
    slow: int | None = None
    # What its last try failed with.
    slow_why: str | None = None
    # Parked operations, and why; best-effort ones in the second.
    parked: dict[str, str] = field(default_factory=dict)
    parked_best_effort: dict[str, str] = field(default_factory=dict)
    # Entries that wait though their data is not the cause: by sequence number, the reason.
    waiting: dict[str, str] = field(default_factory=dict)
    # Seconds since it last settled or found nothing to do; None where unknown.
    idle_s: float | None = None
    last_applied_at: datetime | None = None
    # Entries that each lane has delivered since the relay began; empty where there is one lane.
    lanes: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class OutboxStatus:
    """A snapshot, taken in bounded time.  Sizes in bytes, durations in seconds."""

    path: str
    store_id: str
    # Acknowledged and not yet settled, held back ones included.
    pending: int
    # Pending behind a dead letter of the same ordering key, as of the relay's last look.
    held_back: int
    dead_letters: int
    # Settled since the store was created.
    completed: int
    acknowledged: int
    discarded: int
    quarantined: int
    # Completed without a ledger copy because the disk was full.
    unledgered: int
    ledger: int
    # Age of the oldest pending entry; 0 when there is none.
    lag_s: float
    # Highest sequence number with nothing unsettled at or below it.
    watermark: int
    last_seq: int
    # By how much the stamp of the newest entry is ahead of the clock; 0 unless the clock was set back.
    ahead_s: float
    relay: RelayStatus
    # How fast entries come and go, and when there is no room left.
    rates: Rates = field(default_factory=Rates)
    # Set while an operator lets nothing be delivered.
    paused: Pause | None = None
    # Process that may enqueue, or None when no engine is running.
    engine_pid: int | None
    # The halt latch: set after a failed durable write until the store is reopened.
    halted: bool
    halt_reason: str | None
    live_bytes: int
    file_bytes: int
    # The running engine's quota, at 85 % of which enqueueing stops; without an engine that of this process's settings.
    max_bytes: int
    # Free disk below which enqueueing stops, of the same settings.
    reserve_bytes: int
    map_bytes: int
    free_disk_bytes: int
    # How many commits the oldest reader is behind: the pages that they freed are not used again meanwhile.
    pinned_commits: int = 0
    # For how long a write to the disk has not ended, as the relay of the engine's process sees it; 0 when it works.
    disk_waits_s: float = 0.0
    # What a person must judge, by name; stays until it is acknowledged.
    alarms: dict[str, str] = field(default_factory=dict)
    # What integrations report, by name; renewed and taken away by themselves.
    notices: dict[str, Notice] = field(default_factory=dict)
    # One sentence each: what is wrong, worst first.
    needs_operator: list[str] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)

    @property
    def breaker(self) -> str:
        """State of the relay's circuit breaker: closed, open, half-open or unknown."""
        return self.relay.breaker

    @property
    def health(self) -> Health:
        """HEALTHY, DEGRADED or NEEDS_OPERATOR."""
        if self.needs_operator:
            return Health.NEEDS_OPERATOR
        return Health.DEGRADED if self.degraded else Health.HEALTHY

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; times as ISO 8601 in UTC."""
        values = asdict(self)
        times = {name: value for name, value in values["relay"].items() if isinstance(value, datetime)}
        values["relay"] |= {name: value.isoformat() for name, value in times.items()}
        if values["paused"] is not None:
            values["paused"] = {name: value and str(value) for name, value in values["paused"].items()}
        return {**values, "breaker": self.breaker, "health": self.health.name.lower()}


def snapshot(
    store: Store, config: OutboxConfig, clock: Clock, *, is_engine: bool, held: HeldBackCount | None = None
) -> OutboxStatus:
    """The state of an outbox, in bounded time, without findings.

    Put together from the store and what engine and relay say of themselves.  `is_engine`: this process may enqueue.
    `held` counts what waits behind dead letters where no relay does.  Raises `StoreClosed`.
    """
    figures = store.figures()
    relay_state = StateFile(store.directory / "relay.state").read() or {}
    engine_state = StateFile(store.directory / "engine.state").read() or {}
    engine_pid = os.getpid() if is_engine else holder(store.directory, Role.ENGINE)
    relay_pid = holder(store.directory, Role.RELAY)
    if is_engine or engine_pid is None or engine_state.get("pid") != engine_pid:
        engine_state = {}  # of this process, or of an engine that has ended
    halt = store.halt_reason or engine_state.get("halted")
    counters = figures.counters
    now = clock.now()
    lag_s = 0.0 if figures.oldest_us is None else max(0.0, (now - from_us(figures.oldest_us)).total_seconds())
    ahead_s = max(0.0, (from_us(counters.last_us) - now).total_seconds())
    # An entry stamped by a clock ahead of this one has a stamp in the future, which gives no waiting time.
    waits_s = math.inf if (figures.oldest_us or 0) > to_us(now) + AHEAD_US else lag_s
    paused = parse_pause(figures.pause, clock)
    held_back = min(int(relay_state.get("held_back") or 0), figures.pending) if counters.dead else 0
    counts = relay_pid is not None and relay_state.get("breaker") == "closed" and not relay_state.get("stopped")
    if counters.dead and figures.pending and not (counts and paused is None):
        counted = (held or HeldBackCount()).of(store, figures)
        held_back = counted if figures.pending <= LOOKED_AT else max(counted, held_back)
    relay = _relay_status(config, clock, relay_state, relay_pid, waits_s if figures.pending > held_back else 0.0)
    status = OutboxStatus(
        path=str(store.directory),
        store_id=str(store.identity.store_id),
        pending=figures.pending,
        held_back=held_back,
        dead_letters=counters.dead,
        completed=counters.completed,
        acknowledged=counters.acknowledged,
        discarded=counters.discarded,
        quarantined=counters.quarantined,
        unledgered=counters.unledgered,
        ledger=figures.ledger,
        lag_s=lag_s,
        watermark=counters.next_seq - 1 if figures.first_pending is None else figures.first_pending - 1,
        last_seq=counters.next_seq - 1,
        ahead_s=ahead_s,
        relay=relay if paused is None else replace(relay, stuck=False, late_s=0.0),
        paused=paused,
        engine_pid=engine_pid,
        halted=halt is not None,
        halt_reason=halt,
        live_bytes=figures.live_bytes,
        file_bytes=figures.file_bytes,
        max_bytes=int(engine_state.get("max_bytes") or store.max_bytes),
        reserve_bytes=int(engine_state.get("reserve_bytes", store.reserve_bytes)),
        map_bytes=figures.map_bytes,
        free_disk_bytes=figures.free_disk_bytes,
        pinned_commits=figures.pinned_commits,
        disk_waits_s=_seconds_since(relay_state.get("writing_since"), clock) if relay.alive else 0.0,
        alarms=figures.alarms,
        notices=parse_notices(figures.notices),
    )
    known = None if math.isinf(waits_s) else lag_s
    rates = _rates(status, clock, relay_state.get("pace"), figures.first_pending, known)
    return replace(status, rates=rates)


def _rates(
    status: OutboxStatus, clock: Clock, said: object, first_pending: int | None, waiting_s: float | None
) -> Rates:
    relay = status.relay
    delivering = relay.alive and relay.breaker == "closed" and not relay.stopped and status.paused is None
    # How many entries are parked is not known.
    waits = relay.parked or relay.parked_best_effort or relay.waiting or relay.slow
    return measure(
        said,
        now=clock.monotonic(),
        delivering=delivering,
        relay_alive=relay.alive,
        last_seq=status.last_seq,
        first_pending=first_pending,
        waiting_s=waiting_s,
        deliverable=0 if waits else status.pending - status.held_back,
        room=Room(
            live_bytes=status.live_bytes,
            file_bytes=status.file_bytes,
            max_bytes=status.max_bytes,
            free_disk_bytes=status.free_disk_bytes,
            reserve_bytes=status.reserve_bytes,
            pending=status.pending,
            ledger=status.ledger,
            dead_letters=status.dead_letters,
            history_may_go=FORGOTTEN not in status.alarms,
        ),
    )


def _relay_status(
    config: OutboxConfig, clock: Clock, state: Mapping[str, Any], pid: int | None, waits_s: float
) -> RelayStatus:
    moved = state.get("moved_at")
    idle = None if moved is None else max(0.0, clock.monotonic() - float(moved))
    alive = pid is not None
    breaker = str(state.get("breaker", "unknown"))
    # Both: the relay may have been idle for long before a new entry came.
    late_s = min(idle or 0.0, waits_s)
    failed = state.get("failed_at")
    quiet_s = late_s if failed is None else min(late_s, max(0.0, clock.monotonic() - float(failed)))
    stuck = alive and breaker == "closed" and quiet_s > config.stuck_after
    parked = state.get("parked") or {}
    return RelayStatus(
        alive=alive,
        pid=pid or None,
        breaker=breaker,
        stopped=bool(state.get("stopped")),
        late_s=late_s,
        stuck=stuck,
        died=state.get("died"),
        last_error=state.get("last_error"),
        slow=state.get("slow"),
        slow_why=state.get("slow_why"),
        parked={name: one["reason"] for name, one in parked.items() if not one["best_effort"]},
        parked_best_effort={name: one["reason"] for name, one in parked.items() if one["best_effort"]},
        waiting=dict(state.get("waiting") or {}),
        idle_s=idle,
        since=_time(state.get("since")),
        said_at=_time(state.get("said_at")),
        last_applied_at=_time(state.get("last_applied_at")),
        lanes=list(state.get("lanes") or []),
    )


def _seconds_since(monotonic: object, clock: Clock) -> float:
    return max(0.0, clock.monotonic() - float(monotonic)) if isinstance(monotonic, int | float) else 0.0


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
