"""`atb outbox import`: adds an exported file to a store."""

from __future__ import annotations

import os
from pathlib import Path

import click

from outbox.clock import SystemClock
from outbox.transfer.importing import Restored, restore

from .common import Refused, directory_option, in_one_sentence, say, settings


@click.command("import")
@directory_option
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--merge", is_flag=True, help="Also into a store with another id than the exported one.")
@click.pass_context
@in_one_sentence
def import_(context: click.Context, directory: str | None, file: Path, merge: bool) -> None:
    """Add an exported FILE to a store, or create the store.

    Needs exclusive access.  All or nothing.  Keys, ids, order and states are kept, so nothing takes effect twice, and
    importing a file again changes nothing.  Exit code 0: done.  1: done, and something needs an operator (see
    `atb outbox list`).  2: nothing was imported.
    """
    config = settings(directory)
    try:
        done = restore(file, Path(config.dir).absolute(), config, SystemClock(), merge=merge)
    except OSError as exc:
        if exc.filename is None or os.fspath(exc.filename) != str(file):
            raise
        raise Refused(f"{file} cannot be read: {exc.strerror} (give a file that `atb outbox export` wrote)") from exc
    for line in _report(done):
        say(line, indent=16)
    context.exit(1 if done.remains or done.conflicts else 0)


def _report(done: Restored) -> list[str]:
    counts = ", ".join(f"{count} {state.value}" for state, count in sorted(done.entries.items())) or "nothing new"
    made = "created" if done.created else "there before"
    lines = [f"outbox {done.directory} (store {done.store_id}, {made})", f"imported        {counts}"]
    if done.known:
        lines.append(f"known           {done.known}, left as they are")
    if done.renumbered and done.entries:
        lines.append("renumbered      they follow the store's own entries, in their old order")
    if done.conflicts:
        lines.append(f"conflicts       {done.conflicts} whose key is in use with other arguments")
    if done.remains:
        lines.append(f"quarantined     {done.remains} of which the file has raw bytes or a key only")
    if done.small_records:
        lines.append(f"small records   {done.small_records}")
    return lines
