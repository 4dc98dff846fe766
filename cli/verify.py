"""`atb outbox verify`: reports the damage of a store, and what can be salvaged."""

from __future__ import annotations

from pathlib import Path

import click

from outbox.transfer.exporting import Findings, examine

from .common import directory_option, in_one_sentence, say, settings

_SHOWN = 20


@click.command()
@directory_option
@click.pass_context
@in_one_sentence
def verify(context: click.Context, directory: str | None) -> None:
    """Check every page and every record of a store; change nothing.

    Needs exclusive access.  Shows the damage, and what `atb outbox export` can salvage.  Exit code 0: sound.  1:
    damaged.  2: it could not be checked, or this command has a defect.
    """
    config = settings(directory)
    path = Path(config.dir).absolute()
    found = examine(path, python=config.python)
    click.echo(f"outbox {path}: {'sound' if found.sound else 'damaged'}")
    for problem in found.disagreements[:_SHOWN]:
        say(f"?? {problem}", indent=3)
    for problem in found.problems[:_SHOWN]:
        say(f"!! {problem}", indent=3)
    if len(found.problems) > _SHOWN:
        click.echo(f"!! and {len(found.problems) - _SHOWN} more")
    for line in summary(found):
        say(line, indent=16)
    if found.sound and found.disagreements:
        say("?? an engine opens this store; only this command rejects it: please report a defect of lmdb-outbox")
        context.exit(2)
    context.exit(0 if found.sound else 1)


def summary(found: Findings) -> list[str]:
    """What is readable, and what is not."""
    counts = ", ".join(f"{count} {state.value}" for state, count in sorted(found.entries.items())) or "none"
    lines = [f"{'readable' if found.sound else 'can be salvaged':<16}{counts}"]
    if found.loose:
        lines.append(f"{'of these':<16}{found.loose} found outside of the store's structure, perhaps in an older state")
    if found.damaged or found.lost:
        lines.append(f"{'not readable':<16}{found.damaged} with their raw bytes, {found.lost} known by their keys only")
    if found.quarantined:
        lines.append(f"{'quarantined':<16}{found.quarantined}, with their raw bytes")
    if found.bare_keys:
        lines.append(f"{'keys only':<16}{found.bare_keys} completed without a ledger copy")
    lines.append(f"{'small records':<16}{found.small_records}")
    return lines
