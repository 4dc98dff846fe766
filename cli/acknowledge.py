"""`atb outbox acknowledge`: clears an alarm after an operator has corrected its cause."""

from __future__ import annotations

import click

from outbox import Outbox

from .common import Refused, directory_option, in_one_sentence, settings


@click.command()
@directory_option
@click.argument("name")
@in_one_sentence
def acknowledge(directory: str | None, name: str) -> None:
    """Clear the alarm NAME after fixing its cause.

    `atb outbox status` shows the names.  `unledgered` is the name of entries that were completed without a ledger copy.
    Works beside a running engine.
    """
    with Outbox.attach(config=settings(directory)) as box:
        if not box.acknowledge(name):
            known = ", ".join(box.status().alarms) or "there is none"
            raise Refused(f"no alarm is named {name!r} (alarms: {known})")
    click.echo(f"acknowledged: {name}")
