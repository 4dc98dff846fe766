"""Snapshot: puts together what the store, the engine and the relay say of themselves."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from ..clock import Clock
from ..config import OutboxConfig
from ..store.envelope import from_us, to_us
from ..store.locks import Role, holder
from ..store.rates import Rates, Room, measure
from ..store.reads import FORGOTTEN
from ..store.state_file import StateFile
from ..store.store import AHEAD_US, Store
from .notices import parse
from .pause import parse as parse_pause
from .status import OutboxStatus, RelayStatus, assess


def snapshot(store: Store, config: OutboxConfig, clock: Clock, *, is_engine: bool) -> OutboxStatus:
    """The state of an outbox, in time independent of the backlog.  `is_engine`: this process may enqueue.

    Raises `StoreClosed`.
    """
    figures = store.figures()
    relay_state = StateFile(store.directory / "relay.state").read() or {}
    engine_state = StateFile(store.directory / "engine.state").read() or {}
    engine_pid = os.getpid() if is_engine else holder(store.directory, Role.ENGINE)
    relay_pid = holder(store.directory, Role.RELAY)
    halt = store.halt_reason
    if halt is None and engine_pid is not None and engine_state.get("pid") == engine_pid:
        halt = engine_state.get("halted")
    counters = figures.counters
    now = clock.now()
    lag_s = 0.0 if figures.oldest_us is None else max(0.0, (now - from_us(figures.oldest_us)).total_seconds())
    ahead_s = max(0.0, (from_us(counters.last_us) - now).total_seconds())
    # The stamp of an entry that was made by a clock ahead of this one does not tell how long it has been waiting.
    waits_s = math.inf if (figures.oldest_us or 0) > to_us(now) + AHEAD_US else lag_s
    held_back = min(int(relay_state.get("held_back") or 0), figures.pending) if counters.dead else 0
    paused = parse_pause(figures.pause, clock)
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
        relay=replace(relay, stuck=relay.stuck and paused is None),
        paused=paused,
        engine_pid=engine_pid,
        halted=halt is not None,
        halt_reason=halt,
        live_bytes=figures.live_bytes,
        file_bytes=figures.file_bytes,
        max_bytes=store.max_bytes,
        reserve_bytes=store.reserve_bytes,
        map_bytes=figures.map_bytes,
        free_disk_bytes=figures.free_disk_bytes,
        pinned_commits=figures.pinned_commits,
        alarms=figures.alarms,
        notices=parse(figures.notices),
    )
    known = None if math.isinf(waits_s) else lag_s
    rates = _rates(status, clock, relay_state.get("pace"), figures.first_pending, known)
    return assess(replace(status, rates=rates), config)


def _rates(
    status: OutboxStatus, clock: Clock, said: object, first_pending: int | None, waiting_s: float | None
) -> Rates:
    relay = status.relay
    delivering = relay.alive and relay.breaker == "closed" and not relay.stopped and status.paused is None
    # Of what is parked nobody knows how much it is.
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
    late = min(idle or 0.0, waits_s) > config.stuck_after
    stuck = alive and breaker == "closed" and late
    parked = state.get("parked") or {}
    return RelayStatus(
        alive=alive,
        pid=pid or None,
        breaker=breaker,
        stopped=bool(state.get("stopped")),
        stuck=stuck,
        died=state.get("died"),
        last_error=state.get("last_error"),
        slow=state.get("slow"),
        parked={name: one["reason"] for name, one in parked.items() if not one["best_effort"]},
        parked_best_effort={name: one["reason"] for name, one in parked.items() if one["best_effort"]},
        waiting=dict(state.get("waiting") or {}),
        idle_s=idle,
        since=_time(state.get("since")),
        said_at=_time(state.get("said_at")),
        last_applied_at=_time(state.get("last_applied_at")),
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
