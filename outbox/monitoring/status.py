"""OutboxStatus: what an operator and a monitor see of an outbox, from any process."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from enum import IntEnum
from typing import Any

from ..config import OutboxConfig
from ..store.quota import KEPT_HISTORY, QUOTA_SHARE
from ..store.rates import Rates
from ..store.reads import FORGOTTEN
from ..store.store import AHEAD_US
from ..words import counted, duration, entries, rate
from .notices import Notice
from .pause import Pause

# A store that refuses entries is short of the limit by what the entry that did not fit would have cost.
_FULL_SHARE = QUOTA_SHARE - 0.01
_REFUSING_SHARE = 1 + 1 / 16
_FILLING_SHARE = 0.7
# A read takes milliseconds, so that a reader which is so many commits behind hangs, or is dead.
_PINNED_COMMITS = 10_000
# While the backlog grows, somebody must have this much time to act before enqueueing is refused.
SHORT_RUNWAY_S = 3600.0

# The name under which an operator acknowledges that entries have no ledger copy.
UNLEDGERED = "unledgered"


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
    # True when it is alive, PostgreSQL answers and entries wait, but nothing moved for `stuck_after` seconds.
    stuck: bool = False
    # Why its thread died, or None.
    died: str | None = None
    last_error: str | None = None
    # When that began, and when the relay last said something of itself.
    since: datetime | None = None
    said_at: datetime | None = None
    # Sequence number of an entry that took too long again and again, though it was alone in its transaction.
    slow: int | None = None
    # Parked operations, and why; best-effort ones in the second.
    parked: dict[str, str] = field(default_factory=dict)
    parked_best_effort: dict[str, str] = field(default_factory=dict)
    # Entries that were tried, wait, and are not to blame themselves, by sequence number, and why.
    waiting: dict[str, str] = field(default_factory=dict)
    # Seconds since it last settled or found nothing to do; None where unknown.
    idle_s: float | None = None
    last_applied_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class OutboxStatus:
    """A snapshot, taken in time independent of the backlog.  Sizes in bytes, durations in seconds."""

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
    # The quota; enqueueing stops at 85 % of it.
    max_bytes: int
    # Free disk below which enqueueing stops.
    reserve_bytes: int
    map_bytes: int
    free_disk_bytes: int
    # How many commits the oldest reader is behind: the pages that they freed are not used again meanwhile.
    pinned_commits: int = 0
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


def assess(status: OutboxStatus, config: OutboxConfig) -> OutboxStatus:
    """`status` with its findings filled in: what needs an operator and what is degraded."""
    return replace(status, needs_operator=_needs_operator(status), degraded=_degraded(status, config))


def _is_full(status: OutboxStatus) -> bool:
    return status.live_bytes > _FULL_SHARE * status.max_bytes


def _has_history(status: OutboxStatus) -> bool:
    """Whether settled entries can make room for new ones."""
    return status.ledger - status.dead_letters > KEPT_HISTORY and FORGOTTEN not in status.alarms


def _disk_is_full(status: OutboxStatus) -> bool:
    return status.free_disk_bytes < _REFUSING_SHARE * status.reserve_bytes


def _refuses(status: OutboxStatus) -> bool:
    """Whether there is no room any more, which is said as such."""
    return (_is_full(status) and not _has_history(status)) or _disk_is_full(status)


def _needs_operator(status: OutboxStatus) -> list[str]:
    relay, said = status.relay, []
    if status.halted:
        said.append(f"enqueueing is halted: the store {status.halt_reason}")
    if status.quarantined:
        said.append(f"{counted(status.quarantined, 'damaged entry is', 'damaged entries are')} quarantined")
    if status.dead_letters:
        dead = counted(status.dead_letters, "dead letter holds", "dead letters hold")
        said.append(f"{dead} back {entries(status.held_back)}")
    said += [f"{name}: {message}" for name, message in status.alarms.items()]
    if _is_full(status) and not _has_history(status):
        said.append(f"the store is full: {status.live_bytes >> 20} of {status.max_bytes >> 20} MiB")
    if _disk_is_full(status):
        said.append(
            f"enqueueing is refused: {status.free_disk_bytes >> 20} MiB of disk are free, "
            f"{status.reserve_bytes >> 20} MiB are kept for draining"
        )
    if relay.died and not relay.alive:
        said.append(f"the relay died: {relay.died}")
    if relay.stuck:
        said.append(f"the relay is stuck: no progress for {relay.idle_s or 0:.0f} s while entries wait")
    ended = _ended(relay)
    if relay.slow is not None:
        said.append(
            f"entry {relay.slow} takes too long in PostgreSQL: it is blocked by a lock, or too large; later "
            f"entries of its ordering key wait{ended}"
        )
    said += [f"operation {name!r} is parked, its entries wait: {why}{ended}" for name, why in relay.parked.items()]
    said += [f"entry {seq} waits, and its ordering key: {why}{ended}" for seq, why in relay.waiting.items()]
    if relay.stopped:
        said.append(f"the line is stopped: {relay.last_error}{ended}")
    return said


def _ended(relay: RelayStatus) -> str:
    """A remark that the relay has ended: its last report stays until another relay knows better."""
    if relay.alive:
        return ""
    known = [("since", relay.since), ("last report", relay.said_at)]
    times = [f"{what} {at:%Y-%m-%d %H:%M:%S} UTC" for what, at in known if at is not None]
    return f" ({', '.join(['the relay has ended', *times])})"


def _degraded(status: OutboxStatus, config: OutboxConfig) -> list[str]:
    relay, said = status.relay, []
    if status.paused is not None:
        said.append(status.paused.sentence())
    if relay.alive and relay.breaker != "closed" and relay.breaker != "unknown":
        said.append(f"delivery fails and is tried again: {relay.last_error}")
    parked, ended = relay.parked_best_effort.items(), _ended(relay)
    said += [f"operation {name!r} is parked, its best-effort entries wait: {why}{ended}" for name, why in parked]
    waiting = counted(status.pending, "entry waits", "entries wait")
    if status.pending and not relay.alive:
        why = f": {relay.last_error}{ended}" if relay.last_error and not relay.stopped else ""
        said.append(f"no relay is running and {waiting}{why}")
    if status.pending > config.alert_pending:
        said.append(f"{waiting}, more than OUTBOX_ALERT_PENDING={config.alert_pending}")
    rates = status.rates
    if rates.full_in_s is not None and rates.full_in_s < SHORT_RUNWAY_S and not _refuses(status):
        said.append(
            f"the {rates.limit} is full in about {duration(rates.full_in_s)} at this rate "
            f"({rate(rates.enqueued_per_s or 0.0)} enqueued), and then enqueueing is refused"
        )
    if status.pinned_commits > _PINNED_COMMITS:
        said.append(
            f"a reader that is {status.pinned_commits} commits behind keeps freed pages from being used again, "
            f"and the file grows ({status.file_bytes >> 20} MiB): end the process that hangs (`mdb_stat -r`)"
        )
    if status.live_bytes > _FILLING_SHARE * status.max_bytes and not _is_full(status):
        said.append(f"{status.live_bytes >> 20} of {status.max_bytes >> 20} MiB are used, enqueueing stops at 85 %")
    if _is_full(status) and _has_history(status):
        said.append(
            f"the store is full: settled entries leave before OUTBOX_RETENTION_HOURS={config.retention_hours:g}, "
            f"to make room for new ones ({status.live_bytes >> 20} of {status.max_bytes >> 20} MiB)"
        )
    if status.free_disk_bytes < config.min_free_mb << 20 and not _disk_is_full(status):
        said.append(f"{status.free_disk_bytes >> 20} MiB of disk are free, less than {config.min_free_mb}")
    if status.ahead_s > AHEAD_US / 1e6:
        said.append(f"the clock was set back: entries are stamped {status.ahead_s:.0f} s ahead of it")
    said += [notice.message for notice in status.notices.values() if notice.degraded]
    if status.unledgered:
        done = counted(status.unledgered, "entry was", "entries were")
        said.append(f"{done} completed without a ledger copy (acknowledge {UNLEDGERED})")
    return said
