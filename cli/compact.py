"""`atb outbox compact`: prunes expired ledger entries and, with `--vacuum`, shrinks the file."""

from __future__ import annotations

from datetime import timedelta

import click

from outbox import Outbox, StoreLocked
from outbox.words import counted

from .common import Number, Refused, directory_option, in_one_sentence, say, settings, size


@click.command(short_help="Prune settled entries; with --vacuum shrink the file.")
@directory_option
@click.option(
    "--retention-hours",
    type=Number(),
    metavar="HOURS",
    help="Keep settled entries this long; default: OUTBOX_RETENTION_HOURS.",
)
@click.option("--vacuum", is_flag=True, help="Also rewrite the file compactly; needs exclusive access.")
@in_one_sentence
def compact(directory: str | None, retention_hours: float | None, vacuum: bool) -> None:
    """Prune settled entries from the ledger, and with --vacuum shrink the file.

    Without --vacuum it works beside a running engine; freed pages are reused, the file keeps its size.  Pending
    entries and dead letters are never touched.
    """
    config = settings(directory, retention_hours=retention_hours)
    with Outbox.attach(config=config) as box:
        before = box.status()
        try:
            pruned = box.compact(timedelta(hours=config.retention_hours), vacuum=vacuum)
        except StoreLocked as exc:
            raise Refused(f"the store is in use, nothing was changed: {exc}") from exc
        after = box.status()
    settled = counted(before.ledger, "settled entry", "settled entries")
    hours = "hour" if config.retention_hours == 1 else "hours"
    say(f"pruned {pruned} of {settled} older than {config.retention_hours:g} {hours}")
    say(f"file: {size(before.file_bytes)} before, {size(after.file_bytes)} after")
    say(f"in use: {size(before.live_bytes)} before, {size(after.live_bytes)} after")
