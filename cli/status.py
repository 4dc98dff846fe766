"""`atb outbox status`: shows the status once or repeatedly, with an exit code for monitoring."""

from __future__ import annotations

import functools
import json
import math
import os
from typing import Any

import click

from outbox import Health, Outbox, OutboxStatus
from outbox.store.reads import UNKNOWN_BYTES
from outbox.words import duration, rate

from .common import Number, directory_option, in_one_sentence, redacted, say, settings, size, without_password

_STYLES: dict[Health, dict[str, Any]] = {
    Health.HEALTHY: {"fg": "green"},
    Health.DEGRADED: {"fg": "yellow"},
    Health.NEEDS_OPERATOR: {"fg": "red", "bold": True},
}
HEALTH_WORDS = {Health.HEALTHY: "healthy", Health.DEGRADED: "degraded", Health.NEEDS_OPERATOR: "needs an operator"}

_FAIL_ON = {"degraded": Health.DEGRADED, "needs-operator": Health.NEEDS_OPERATOR}
_INTERVAL_S = 2.0
# A backlog that grows more slowly is no more than what comes and goes.
_LONG_RUNWAY_S = 30 * 86_400.0


@click.command()
@directory_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option(
    "--fail-on",
    type=click.Choice(list(_FAIL_ON)),
    default="degraded",
    show_default=True,
    help="Mildest health whose exit code is not 0.",
)
@click.option("--watch", is_flag=True, help="Repeat until Ctrl-C.")
@click.option(
    "--interval",
    type=Number(0.1, 3600),
    metavar="SECONDS",
    help=f"With --watch: seconds between two updates; default: {_INTERVAL_S:g}.",
)
@click.pass_context
@in_one_sentence
def status(
    context: click.Context, directory: str | None, as_json: bool, fail_on: str, watch: bool, interval: float | None
) -> None:
    """Show the state of an outbox; works beside a running engine.

    With --watch a terminal draws the last minutes until Ctrl-C; a pipe gets a block for each update.

    Exit code 0: healthy.  1: degraded, it recovers by itself (an outage, a backlog).  2: needs an operator (dead
    letters, halted, stuck, a full store), or the store could not be read.
    """
    if interval is not None and not watch:
        raise click.UsageError("--interval needs --watch")
    config = settings(directory)
    found: OutboxStatus | None
    if watch:
        # Monitoring that looks once does not wait for what draws.
        from . import watch as watching

        found = watching.watch(lambda: watching.look_at(config), interval or _INTERVAL_S, as_json=as_json)
    else:
        with Outbox.attach(config=config, readonly=True) as box:
            found = box.status()
        if as_json:
            click.echo(json.dumps(redacted(found.as_dict()), indent=2))
        else:
            show(found)
    health = Health.NEEDS_OPERATOR if found is None else found.health
    context.exit(int(health) if health >= _FAIL_ON[fail_on] else 0)


def show(found: OutboxStatus) -> None:
    """Print it: a line for each fact, and what is wrong below."""
    # click colours a terminal only, but does not know this convention.  Rich does, and takes longer than the look.
    color = False if os.environ.get("NO_COLOR") else None
    line = functools.partial(say, color=color)

    # Not folded: a path is copied in one piece.
    headline = without_password(f"outbox {found.path}: {HEALTH_WORDS[found.health]}")
    click.secho(headline, color=color, **_STYLES[found.health])
    for name, value in rows(found):
        line(f"{name:<16}{value}", indent=16)
    for notice in found.notices.values():
        if not notice.degraded and not notice.refuses:
            line(f"-  {notice.message}", indent=3)
    for sentence in found.needs_operator:
        line(f"!! {sentence}", indent=3, fg="red")
    for sentence in found.degraded:
        line(f"!  {sentence}", indent=3, fg="yellow")


def rows(found: OutboxStatus) -> list[tuple[str, str]]:
    """The facts by their names, as people read them."""
    used = 100 * found.live_bytes / found.max_bytes
    mapped = 100 * found.file_bytes / found.map_bytes
    lanes = [("lanes", _lanes(found))] if found.relay.alive and found.relay.lanes else []
    return [
        ("pending", _pending(found)),
        ("rates", _rates(found)),
        ("runway", _runway(found)),
        ("dead letters", f"{found.dead_letters} (entries held back: {found.held_back})"),
        ("completed", f"{found.completed} of {found.acknowledged} acknowledged; in the ledger: {found.ledger}"),
        ("watermark", f"{found.watermark} of {found.last_seq}"),
        ("breaker", found.breaker),
        ("relay", _relay(found)),
        *lanes,
        ("engine", "not running" if found.engine_pid is None else f"process {found.engine_pid}"),
        ("halt latch", f"SET: {found.halt_reason}" if found.halted else "not set"),
        ("store", f"{size(found.live_bytes)} of {size(found.max_bytes)} used ({used:.1f} %)"),
        ("file", f"{size(found.file_bytes)}, {mapped:.2f} % of the map of {size(found.map_bytes)}"),
        ("disk free", "unknown" if found.free_disk_bytes >= UNKNOWN_BYTES else size(found.free_disk_bytes)),
    ]


def _pending(found: OutboxStatus) -> str:
    drained = found.rates.drained_in_s
    # Shorter than a second is what every delivery takes.
    eta = "" if drained is None or drained < 1 else f", drained in about {duration(drained)}"
    return f"{found.pending} (lag {duration(found.lag_s)}{eta})"


def _rates(found: OutboxStatus) -> str:
    rates = found.rates
    if rates.window_s is None:
        return "not known yet" if found.relay.alive else "no relay, nothing is delivered"
    enqueued, delivered = rates.enqueued_per_s or 0.0, rates.delivered_per_s or 0.0
    return f"enqueued {rate(enqueued)}, delivered {rate(delivered)} (of the last {duration(rates.window_s)})"


def _runway(found: OutboxStatus) -> str:
    rates = found.rates
    if rates.outage_s is None:
        return "not known while nothing is enqueued"
    reserved = min((one.lasts_s for one in found.notices.values() if one.lasts_s is not None), default=math.inf)
    if reserved < rates.outage_s:
        return f"an outage may last {duration(reserved)} at this rate, see what is in reserve below"
    then = "" if rates.drain_then_s is None else f"; draining then takes about {duration(rates.drain_then_s)}"
    if rates.full_in_s is not None and rates.full_in_s < _LONG_RUNWAY_S:
        return f"at this rate the {rates.limit} is full in {duration(rates.full_in_s)}{then}"
    return f"an outage may last {duration(rates.outage_s)} at this rate{then}"


def _lanes(found: OutboxStatus) -> str:
    parts = [f"{number}: {count:,}" for number, count in enumerate(found.relay.lanes, start=1)]
    return f"delivered by {', '.join(parts)}"


def _relay(found: OutboxStatus) -> str:
    relay = found.relay
    if not relay.alive:
        return "not running" if relay.died is None else f"died: {relay.died}"
    waiting = found.pending > found.held_back
    state = "stuck" if relay.stuck else "line stopped" if relay.stopped else "alive" if waiting else "idle"
    idle = "" if relay.idle_s is None else f", last progress {duration(relay.idle_s)} ago"
    return f"{state}, process {relay.pid}{idle}"
