"""`atb outbox pause | resume`: stops deliveries for a while, and resumes them."""

from __future__ import annotations

import re
from datetime import timedelta

import click

from outbox import Outbox
from outbox.monitoring.pause import LONGEST_S

from .common import Text, directory_option, in_one_sentence, say, settings

_LENGTH = re.compile(r"(\d+)([smhd])\Z")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _length(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    found = _LENGTH.match(value)
    if found is not None and 0 < int(found[1]) < 10_000_000:
        length_s = timedelta(**{_UNITS[found[2]]: int(found[1])}).total_seconds()
        if length_s <= LONGEST_S:
            return length_s
    raise click.BadParameter(f"{value[:100]!r} (allowed: 90s, 30m, 2h, 1d; at most a year)", context, parameter)


@click.command()
@directory_option
@click.option("--reason", type=Text(), required=True, help="Why; every status shows it.")
@click.option("--for", "for_s", metavar="TIME", callback=_length, help="End by itself after 90s, 30m, 2h, 1d.")
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
