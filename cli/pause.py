"""`atb outbox pause | resume`: stops deliveries for a while, and resumes them."""

from __future__ import annotations

import click

from outbox import Outbox
from outbox.monitoring.pause import LONGEST_S

from .common import LENGTHS, Text, directory_option, in_one_sentence, length_of, say, settings


def _length(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    length = length_of(value)
    if length is not None and 0 < length.total_seconds() <= LONGEST_S:
        return length.total_seconds()
    raise click.BadParameter(f"{value[:100]!r} (allowed: {LENGTHS}; at most a year)", context, parameter)


@click.command()
@directory_option
@click.option("--reason", type=Text(), required=True, help="Why; every status shows it.")
@click.option("--for", "for_s", metavar="TIME", callback=_length, help="End by itself after 90s, 30m, 2h, 7d.")
@in_one_sentence
def pause(directory: str | None, reason: str, for_s: float | None) -> None:
    """Deliver nothing until `atb outbox resume`, or for a time.

    The relay stops within about a second, after the batch in flight.  Enqueueing goes on.  The store keeps the pause
    over restarts.  Works beside a running engine.
    """
    with Outbox.attach(config=settings(directory)) as box:
        say(box.pauses.begin(reason, for_s).sentence())


@click.command()
@directory_option
@in_one_sentence
def resume(directory: str | None) -> None:
    """End a pause: deliveries go on within about a second."""
    with Outbox.attach(config=settings(directory)) as box:
        click.echo("delivery goes on" if box.pauses.end() else "delivery was not paused")
