"""Findings: the reasons for "needs an operator" and "degraded", in sentences."""

from __future__ import annotations

from dataclasses import replace

from ..config import OutboxConfig
from ..store.quota import KEPT_HISTORY, QUOTA_SHARE
from ..store.reads import FORGOTTEN
from ..store.store import AHEAD_US
from ..words import counted, duration, entries, rate
from .status import OutboxStatus, RelayStatus

# A store that refuses entries is short of the limit by what the entry that did not fit would have cost.
_FULL_SHARE = QUOTA_SHARE - 0.01
_REFUSING_SHARE = 1 + 1 / 16
_FILLING_SHARE = 0.7
# A read takes milliseconds, so that a reader which is so many commits behind hangs, or is dead.
_PINNED_COMMITS = 10_000
# A relay that delivers nothing for this part of the time after which it is stuck is late.
_LATE_SHARE = 0.25
# While the backlog grows, an operator must have this much time to act before enqueueing is refused.
SHORT_RUNWAY_S = 3600.0

# The name under which an operator acknowledges that entries have no ledger copy.
UNLEDGERED = "unledgered"


def assess(status: OutboxStatus, config: OutboxConfig) -> OutboxStatus:
    """`status` with its findings filled in: what needs an operator and what is degraded."""
    return replace(status, needs_operator=_needs_operator(status, config), degraded=_degraded(status, config))


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


def _needs_operator(status: OutboxStatus, config: OutboxConfig) -> list[str]:
    relay, said = status.relay, []
    if status.halted:
        said.append(f"enqueueing is halted: the store {status.halt_reason}")
    if status.quarantined:
        damaged = counted(status.quarantined, "damaged entry is", "damaged entries are")
        said.append(f"{damaged} quarantined (see `atb outbox list`)")
    if status.dead_letters:
        if status.held_back:
            dead = counted(status.dead_letters, "dead letter holds", "dead letters hold")
            said.append(f"{dead} back {entries(status.held_back)} (see `atb outbox list`)")
        else:
            dead = counted(status.dead_letters, "dead letter waits", "dead letters wait")
            said.append(f"{dead} for an answer (see `atb outbox list`)")
    said += [f"{name}: {message}" for name, message in status.alarms.items()]
    if _is_full(status) and not _has_history(status):
        said.append(
            f"the store is full: {status.live_bytes >> 20} of {status.max_bytes >> 20} MiB; drain and compact, "
            f"or raise {'ulimit -v' if status.max_bytes == status.map_bytes else 'max_size_mb (OUTBOX_MAX_SIZE_MB)'}"
        )
    if _disk_is_full(status):
        said.append(
            f"enqueueing is refused: {status.free_disk_bytes >> 20} MiB of disk are free, "
            f"{status.reserve_bytes >> 20} MiB are kept for draining; free disk space"
        )
    said += [notice.message for notice in status.notices.values() if notice.refuses]
    if status.disk_waits_s > config.stuck_after:
        said.append(
            f"the disk hangs: a write to {status.path} has not ended for {status.disk_waits_s:.0f} s, and calls wait "
            "for it; look at the disk and the kernel's log"
        )
    if relay.died and not relay.alive:
        said.append(f"the relay died: {relay.died}; restart the engine or its relay")
    if relay.stuck:
        idle_s = relay.idle_s or 0
        said.append(f"the relay is stuck: no progress for {idle_s:.0f} s while entries wait; read its log, restart it")
    ended = _ended(relay)
    if relay.slow is not None:
        said.append(
            f"entry {relay.slow} takes too long or fails each time, by itself: {relay.slow_why or 'see the log'}; "
            f"later entries of its ordering key wait, unless it is best effort{ended}"
        )
    said += [f"operation {name!r} is parked, its entries wait: {why}{ended}" for name, why in relay.parked.items()]
    said += [f"entry {seq} waits, and its ordering key: {why}{ended}" for seq, why in relay.waiting.items()]
    if relay.stopped and not _is_told_by_alarm(status):
        said.append(f"the line is stopped: {relay.last_error}{ended}")
    return said


def _is_told_by_alarm(status: OutboxStatus) -> bool:
    """Whether the line is stopped by the loss of which the alarm tells: both begin with the loss, then name a way."""
    loss = (status.relay.last_error or "").partition(" (")[0]
    return bool(loss) and status.alarms.get(FORGOTTEN, "").startswith(loss)


def _ended(relay: RelayStatus) -> str:
    """A remark that the relay has ended: its last report stays until another relay reports."""
    if relay.alive:
        return ""
    known = [("began at", relay.since), ("was last reported at", relay.said_at)]
    times = [f"; this {what} {at:%Y-%m-%d %H:%M:%S} UTC" for what, at in known if at is not None]
    return f" (the relay has ended{''.join(times)})"


def _is_late(relay: RelayStatus, config: OutboxConfig) -> bool:
    """Whether entries wait for a relay that neither fails nor says what they wait for."""
    waits = relay.parked or relay.parked_best_effort or relay.waiting or relay.slow is not None
    works = relay.alive and relay.breaker == "closed" and not (relay.stopped or relay.stuck or waits)
    return works and relay.late_s > _LATE_SHARE * config.stuck_after


def _degraded(status: OutboxStatus, config: OutboxConfig) -> list[str]:
    relay, said = status.relay, []
    if status.paused is not None:
        said.append(status.paused.sentence())
    # A stopped line is an operator's matter, told with the same error.
    if relay.alive and relay.breaker not in ("closed", "unknown") and not relay.stopped:
        said.append(f"delivery fails and is tried again: {relay.last_error}")
    parked, ended = relay.parked_best_effort.items(), _ended(relay)
    said += [f"operation {name!r} is parked, its best-effort entries wait: {why}{ended}" for name, why in parked]
    waiting = counted(status.pending, "entry waits", "entries wait")
    if status.pending and not relay.alive:
        why = f"; last error: {relay.last_error}{ended}" if relay.last_error and not relay.stopped else ""
        said.append(f"no relay is running and {waiting}; start the engine or its relay{why}")
    if _is_late(relay, config):
        late = f"nothing was delivered for {relay.late_s:.0f} s, and {waiting}"
        said.append(f"{late}: PostgreSQL or a handler is slow, or hangs")
    if status.pending > config.alert_pending:
        said.append(f"{waiting}, more than {config.named('alert_pending')}={config.alert_pending}")
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
            "the store is full: settled entries leave before "
            f"{config.named('retention_hours')}={config.retention_hours:g}, "
            f"to make room for new ones ({status.live_bytes >> 20} of {status.max_bytes >> 20} MiB)"
        )
    if status.free_disk_bytes < config.min_free_mb << 20 and not _disk_is_full(status):
        said.append(
            f"{status.free_disk_bytes >> 20} MiB of disk are free, "
            f"less than {config.named('min_free_mb')}={config.min_free_mb}"
        )
    if status.ahead_s > AHEAD_US / 1e6:
        said.append(f"the clock was set back: entries are stamped {status.ahead_s:.0f} s ahead of it")
    said += [notice.message for notice in status.notices.values() if notice.degraded and not notice.refuses]
    if status.unledgered:
        done = counted(status.unledgered, "entry was", "entries were")
        said.append(f"{done} completed without a ledger copy (`atb outbox acknowledge {UNLEDGERED}`)")
    return said
