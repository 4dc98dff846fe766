"""`atb outbox status`: one look, an exit code for monitoring."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.text import Text

from outbox import Health, Outbox, OutboxStatus

from .common import directory_option, duration, in_one_sentence, settings, size, without_password

_STYLES = {Health.HEALTHY: "green", Health.DEGRADED: "yellow", Health.NEEDS_OPERATOR: "bold red"}
_WORDS = {Health.HEALTHY: "healthy", Health.DEGRADED: "degraded", Health.NEEDS_OPERATOR: "needs an operator"}


@click.command()
@directory_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.pass_context
@in_one_sentence
def status(context: click.Context, directory: str | None, as_json: bool) -> None:
    """Show the state of an outbox; works beside a running engine.

    Exit code 0: healthy.  1: degraded, it will mend itself (an outage, a backlog).  2: needs an operator (dead
    letters, halted, stuck, a full store), or the store could not be read.
    """
    with Outbox.attach(config=settings(directory), readonly=True) as box:
        found = box.status()
    if as_json:
        click.echo(without_password(json.dumps(found.as_dict(), indent=2)))
    else:
        _show(found)
    context.exit(int(found.health))


def _show(found: OutboxStatus) -> None:
    console = Console(highlight=False, soft_wrap=True)

    def line(text: str, style: str = "") -> None:
        # As Text, since what PostgreSQL or the system said may look like markup.
        console.print(Text(without_password(text), style=style))

    line(f"outbox {found.path}: {_WORDS[found.health]}", _STYLES[found.health])
    for name, value in _rows(found):
        line(f"{name:<16}{value}")
    for sentence in found.needs_operator:
        line(f"!! {sentence}", "red")
    for sentence in found.degraded:
        line(f"!  {sentence}", "yellow")


def _rows(found: OutboxStatus) -> list[tuple[str, str]]:
    used = 100 * found.live_bytes / found.max_bytes
    mapped = 100 * found.file_bytes / found.map_bytes
    return [
        ("pending", f"{found.pending} (lag {duration(found.lag_s)})"),
        ("dead letters", f"{found.dead_letters} (held back behind them: {found.held_back})"),
        ("completed", f"{found.completed} of {found.acknowledged} acknowledged; in the ledger: {found.ledger}"),
        ("watermark", f"{found.watermark} of {found.last_seq}"),
        ("breaker", found.breaker),
        ("relay", _relay(found)),
        ("engine", "not running" if found.engine_pid is None else f"process {found.engine_pid}"),
        ("halt latch", f"SET: {found.halt_reason}" if found.halted else "not set"),
        ("store", f"{size(found.live_bytes)} of {size(found.max_bytes)} used ({used:.1f} %)"),
        ("file", f"{size(found.file_bytes)}, {mapped:.2f} % of the map of {size(found.map_bytes)}"),
        ("disk free", size(found.free_disk_bytes)),
    ]


def _relay(found: OutboxStatus) -> str:
    relay = found.relay
    if not relay.alive:
        return "not running" if relay.died is None else f"died: {relay.died}"
    waiting = found.pending > found.held_back
    state = "stuck" if relay.stuck else "line stopped" if relay.stopped else "alive" if waiting else "idle"
    idle = "" if relay.idle_s is None else f", last progress {duration(relay.idle_s)} ago"
    return f"{state}, process {relay.pid}{idle}"
