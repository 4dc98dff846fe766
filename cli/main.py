"""`atb` and its group `outbox`; each command has a file of its own."""

from __future__ import annotations

import importlib.metadata

import click

from .acknowledge import acknowledge
from .common import OneSentenceGroup
from .compact import compact
from .dead_letters import discard, list_dead_letters, retry, show
from .demo import demo
from .drain import drain
from .export import export
from .import_ import import_
from .reconcile import reconcile
from .relay import relay
from .status import status
from .verify import verify

# Also for the group alone, which hosts mount into scripts of their own.
_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(cls=OneSentenceGroup, context_settings=_HELP)
@click.version_option(importlib.metadata.version("lmdb-outbox"), prog_name="atb")
def atb() -> None:
    """Tools of the lmdb-outbox library."""


@atb.group(cls=OneSentenceGroup, context_settings=_HELP)
def outbox() -> None:
    """Look at an outbox, drain it, compact it, rescue it.

    Settings come from the environment (OUTBOX_DIR, DATABASE_URL, ...); options win.
    """


_LOOK = (status, list_dead_letters, show)
_ANSWER = (retry, discard, acknowledge)
for _command in (*_LOOK, *_ANSWER, drain, relay, reconcile, compact, verify, export, import_, demo):
    outbox.add_command(_command)


def main() -> None:
    """Entry point of the console script."""
    atb(prog_name="atb")
