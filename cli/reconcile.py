"""`atb outbox reconcile`: delivers again the entries that PostgreSQL lost."""

from __future__ import annotations

from threading import Event

import click

from outbox import Outbox, OutboxStatus, PostgresTarget, Relay
from outbox.relay.reconcile_orders import (
    ReconcileOrder,
    Reconciliation,
    ordered,
    place_order,
    reconciliations,
    withdraw_order,
)
from outbox.store.reads import FORGOTTEN
from outbox.words import counted, entries

from ..clock import Patience
from .common import (
    Refused,
    Text,
    database_of,
    database_option,
    directory_option,
    in_one_sentence,
    operations_option,
    say,
    settings,
    settled,
    timeout_option,
    without_password,
)
from .declared import check_operations, load_operations

_LOOK_S = 0.1


@click.command()
@directory_option
@database_option
@operations_option
@timeout_option
@click.option("--all", "everything", is_flag=True, help="Compare the whole ledger, even if nothing seems lost.")
@click.option(
    "--accept", type=Text(), metavar="REASON", help="Deliver nothing again: PostgreSQL is right, for this reason."
)
@click.pass_context
@in_one_sentence
def reconcile(
    context: click.Context,
    directory: str | None,
    database_url: str | None,
    operations: str | None,
    timeout: float,
    everything: bool,
    accept: str | None,
) -> None:
    """Deliver lost entries again, in order.

    Compares the ledger with the receipts, puts missing entries back to their old places, and delivers them.  A
    running relay does the work; without one this command does, and needs --operations to deliver.  Interrupting it is
    safe, and so is running it twice.  Exit code 0: PostgreSQL has everything.  1: something is left to deliver, or is
    lost for good.  2: it could not be tried.
    """
    if everything and accept is not None:
        raise click.UsageError("give --all or --accept, not both: what is accepted is not compared")
    config = settings(directory, database_url=database_url)
    order = ReconcileOrder(everything=everything, accept=accept)
    check_operations(operations)
    with Outbox.attach(config=config) as box:
        patience = Patience(timeout, box.clock.monotonic)
        done = _by_relay(box, order, patience) or _here(box, order, operations, patience)
        context.exit(_report(box, done, patience, accepted=accept is not None))


def _by_relay(box: Outbox, order: ReconcileOrder, patience: Patience) -> Reconciliation | None:
    """Tell the relay of another process, and wait for it; None where there is none."""
    before = box.status()
    if not before.relay.alive:
        return None
    _refuse_in_pause(before)
    say(f"the relay of process {before.relay.pid or '?'} compares; waiting for it", err=True)
    placed = place_order(box, order)
    while ordered(box):
        now = box.status()
        if not now.relay.alive or now.paused is not None or patience.is_lost(settled(now)):
            withdraw_order(box, placed)
            if not now.relay.alive:
                return None
            _refuse_in_pause(now)
            why = f": {now.relay.last_error}" if now.relay.last_error else ""
            raise Refused(without_password(f"the relay did not begin in time, nothing was put back{why}"))
        Event().wait(_LOOK_S)
    done = next(reconciliations(box, after_seq=before.last_seq), None)
    if done is None and FORGOTTEN in box.status().alarms:
        raise Refused("PostgreSQL has lost more entries meanwhile, nothing was put back; check the status, try again")
    return done or Reconciliation(needed=False)


def _refuse_in_pause(now: OutboxStatus) -> None:
    if now.paused is not None:
        raise Refused(without_password(f"nothing was put back: {now.paused.sentence()}"))


def _here(box: Outbox, order: ReconcileOrder, operations: str | None, patience: Patience) -> Reconciliation:
    url = database_of(box)
    declared = [] if operations is None else load_operations(operations)
    relay = Relay(box, PostgresTarget(url, declared, config=box.config))
    done = relay.reconcile(everything=order.everything, accept=order.accept)
    # Also what an earlier call has put back.
    if declared and order.accept is None and box.status().pending:
        with relay:
            while relay.running and not relay.drain(_LOOK_S):
                now = box.status()
                if now.paused is not None or patience.is_lost(settled(now)):
                    break
    return done


def _report(box: Outbox, done: Reconciliation, patience: Patience, *, accepted: bool = False) -> int:
    """Say how it ended, when all is delivered or nothing more will happen; returns the exit code."""
    say(done.sentence())
    if done.gone:
        say(f"{entries(done.gone)} cannot be delivered again: missing or incomplete in the ledger")
    now = box.status()
    if done.last_seq is None and (accepted or now.relay.alive or not now.pending):
        return 1 if done.gone else 0
    while True:
        now = box.status()
        delivered = not now.pending or (done.last_seq is not None and now.watermark >= done.last_seq)
        stands_still = now.pending <= now.held_back or not now.relay.alive or now.paused is not None
        if delivered or stands_still or patience.is_lost(settled(now)):
            break
        Event().wait(_LOOK_S)
    if delivered:
        if done.last_seq is not None:
            say("all of them are delivered")
        return 1 if done.gone else 0
    if now.paused is not None:
        say(f"{now.paused.sentence()}; pending: {now.pending}")
        return 1
    way_out = "" if now.relay.alive else "; start the engine, or run `atb outbox drain --operations MODULE:NAME`"
    say(f"{counted(now.pending, 'entry is', 'entries are')} pending{way_out}")
    return 1
