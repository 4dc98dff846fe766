"""`atb outbox acknowledge`: clears alarms after an operator has corrected their causes."""

from __future__ import annotations

from fnmatch import fnmatchcase

import click

from outbox import Outbox

from .common import Refused, directory_option, in_one_sentence, say, settings


@click.command()
@directory_option
@click.argument("name", metavar="NAME...", nargs=-1, required=True)
@in_one_sentence
def acknowledge(directory: str | None, name: tuple[str, ...]) -> None:
    """Clear the alarms NAME after fixing their causes.

    `atb outbox status` shows the names.  A quoted pattern such as 'diverged-id-*' clears all alarms that match.
    `unledgered` is the name of entries that were completed without a ledger copy.  Works beside a running engine.
    """
    with Outbox.attach(config=settings(directory)) as box:
        alarms = [*box.status().alarms]
        unknown: list[str] = []
        done: set[str] = set()
        for wanted in name:
            # A name may have characters of a pattern.
            meant = {wanted, *(alarm for alarm in alarms if fnmatchcase(alarm, wanted))}
            for one in sorted(meant - done):
                if box.acknowledge(one):
                    done.add(one)
                    say(f"acknowledged: {one}")
            if not meant & done:
                unknown.append(wanted)
        left = ", ".join(box.status().alarms) or "there is none"
    if unknown:
        named = "no alarm is named" if len(unknown) == 1 else "no alarms are named"
        raise Refused(f"{named} {', '.join(map(repr, unknown))} (alarms: {left})")
