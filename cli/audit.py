"""`atb outbox audit`: compares every delivered entry with its receipt and row in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click
from rich.table import Table

from outbox import Outbox, OutboxConfig
from outbox.audit import Audit
from outbox.audit import audit as compare
from outbox.codec import to_json

from .common import (
    database_of,
    database_option,
    directory_option,
    in_one_sentence,
    operations_option,
    settings,
    since_when,
)
from .declared import load_operations
from .screen import Lines

_SHOWN = 20


@click.command(short_help="Prove that PostgreSQL has each delivered entry once.")
@directory_option
@database_option
@operations_option
@click.option(
    "--since", metavar="TIME", callback=since_when, help="Only entries captured since: 24h, 7d, or a date in UTC."
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as one JSON object.")
@click.pass_context
@in_one_sentence
def audit(
    context: click.Context,
    directory: str | None,
    database_url: str | None,
    operations: str | None,
    since: datetime | None,
    as_json: bool,
) -> None:
    """Prove that PostgreSQL has each delivered entry once, unchanged.

    Compares the ledger with the receipts, and with --operations also with the rows of table operations.  Changes
    nothing, and is safe beside a running engine.  Exit code 0: nothing is lost, doubled or changed, as far as it
    was compared.  1: something is.  2: it could not be compared.
    """
    config: OutboxConfig = settings(directory, database_url=database_url)
    declared = [] if operations is None else load_operations(operations)
    with Outbox.attach(config=config, readonly=True) as box:
        done = compare(box, database_of(box), declared, since=since)
    if as_json:
        click.echo(to_json(_as_dict(done)).decode())
    else:
        _show(done)
    context.exit(0 if done.sound else 1)


def _as_dict(done: Audit) -> dict[str, Any]:
    facts = {"acknowledged": done.acknowledged, "lost": done.lost, "sound": done.sound, **asdict(done)}
    return {name: _plain(value) for name, value in facts.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return {name: _plain(one) for name, one in value.items()} if isinstance(value, dict) else value


def _show(done: Audit) -> None:
    console = Lines(soft_wrap=True, highlight=False)
    since = f", of entries since {done.since:%Y-%m-%d %H:%M} UTC" if done.since else ""
    console.print(f"audit of {done.at:%Y-%m-%d %H:%M:%S} UTC{since}")
    table = Table(box=None, show_header=False, pad_edge=False)
    for label, count in _counts(done):
        table.add_row(label, f"{count:,}")
    console.print(table)
    for finding in done.findings[:_SHOWN]:
        captured = "" if finding.captured_at is None else f" of {finding.captured_at:%Y-%m-%d %H:%M:%S}"
        detail = f" ({finding.detail})" if finding.detail else ""
        console.print(f"entry {finding.seq} {finding.operation}{captured}: {finding.problem}{detail}", markup=False)
    if (more := sum(done.problems.values()) - _SHOWN) > 0:
        console.print(f"and {more:,} more; --json has them" if more > 1 else "and one more; --json has it")
    for name, why in sorted(done.not_compared.items()):
        console.print(f"rows of {name} were not compared: {why}", markup=False)
    console.print(_verdict(done))


def _counts(done: Audit) -> Iterator[tuple[str, int]]:
    yield "acknowledged", done.acknowledged
    yield "delivered", done.delivered
    yield "with a receipt", done.applied
    yield "rows compared", done.rows_compared
    yield "pending", done.pending
    yield "dead letters", done.dead_letters
    yield "discarded", done.discarded


def _verdict(done: Audit) -> str:
    if done.sound and not done.delivered:
        return "Nothing was compared: the ledger has no delivered entry."
    if done.sound and not done.not_compared:
        return "Nothing delivered is lost, doubled or changed."
    if done.sound:
        rows = "the compared rows are unchanged" if done.rows_compared else "no rows were compared"
        return f"Each delivered entry has its receipt; {rows}."
    return "FOUND: " + ", ".join(f"{problem}: {count:,}" for problem, count in sorted(done.problems.items()))
