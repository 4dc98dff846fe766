"""`atb outbox healthy`: a probe for service managers that restart a program or take it out of service."""

from __future__ import annotations

from collections.abc import Iterator

import click

from outbox import Health, Outbox, OutboxStatus
from outbox.words import duration, entries

from .common import Number, directory_option, in_one_sentence, say, settings


@click.command()
@directory_option
@click.option("--relay", is_flag=True, help="Also unhealthy while no relay is running, and while it is stuck.")
@click.option("--max-lag", metavar="SECONDS", type=Number(0), help="Also unhealthy above this lag.")
@click.option(
    "--max-pending", metavar="N", type=Number(0, whole=True), help="Also unhealthy above so many pending entries."
)
@click.option("--no-operator", is_flag=True, help="Also unhealthy while anything needs an operator.")
@click.pass_context
@in_one_sentence
def healthy(
    context: click.Context,
    directory: str | None,
    relay: bool,
    max_lag: float | None,
    max_pending: int | None,
    no_operator: bool,
) -> None:
    """Probe liveness: fail only when a restart would help.

    That is when enqueueing is halted or the relay has died, and never in an outage of PostgreSQL.  Options add
    conditions, for a readiness probe.  Exit code 0: healthy.  1: not.  2: the store could not be read.
    """
    with Outbox.attach(config=settings(directory), readonly=True) as box:
        found = box.status()
    faults = list(_dead(found))
    if relay and not found.relay.alive and not faults:
        faults.append("no relay is running")
    if relay and found.relay.stuck:
        faults.append("the relay is stuck")
    if max_lag is not None and found.lag_s > max_lag:
        faults.append(f"the lag is {duration(found.lag_s)}, more than {max_lag:g} s")
    if max_pending is not None and found.pending > max_pending:
        faults.append(f"{entries(found.pending)} pending, more than {max_pending}")
    if no_operator and found.health is Health.NEEDS_OPERATOR and not faults:
        faults += found.needs_operator
    say("; ".join(faults) if faults else "healthy")
    context.exit(1 if faults else 0)


def _dead(found: OutboxStatus) -> Iterator[str]:
    """What a restart mends, and nothing else."""
    if found.halted:
        yield f"enqueueing is halted: the store {found.halt_reason}"
    if found.relay.died is not None and not found.relay.alive:
        yield f"the relay died: {found.relay.died}"
