"""`atb` and its group `outbox`.  Each command has a file of its own, imported when the command is called."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from pathlib import Path

import click

from .common import OneSentenceGroup
from .loading import interrupted_afterwards

# Also for the group alone, which hosts mount into scripts of their own.
_HELP = {"help_option_names": ["-h", "--help"]}

# Each file here is named after its command, a function of the same name; these are the others.
_NAMED_OTHERWISE = {
    "list": "entries:list_entries",
    "show": "entries",
    "retry": "dead_letters",
    "discard": "dead_letters",
    "resume": "pause",
    "import": "import_:import_",
}
_NO_COMMANDS = {
    "common",
    "dead_letters",
    "declared",
    "demo_view",
    "entries",
    "group",
    "help_text",
    "history",
    "import_",
    "listing",
    "loading",
    "log_lines",
    "mount",
    "pace",
    "replacing",
    "screen",
    "signals",
    "watch",
    "watch_view",
}

# `sys.flags.optimize` of `python -OO`.
_DROPS_DOCSTRINGS = 2


@functools.cache
def _commands() -> dict[str, str]:
    """By command: its module, and the function in it where that has another name."""
    files = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    return {name: name for name in files - _NO_COMMANDS} | _NAMED_OTHERWISE


def _with_help(command: click.Command) -> click.Command:
    """`command` with its help, also under `python -OO`, which drops docstrings."""
    if command.help is None and sys.flags.optimize >= _DROPS_DOCSTRINGS:
        from .help_text import help_of

        command.help = help_of(command)
    return command


class CommandsOnDemand(OneSentenceGroup):
    """A group that imports a command when it is asked for: `status` needs neither SQLAlchemy nor the demo."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted({*_commands(), *self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands and cmd_name in _commands():
            module, _, function = _commands()[cmd_name].partition(":")
            with interrupted_afterwards():
                command = getattr(importlib.import_module(f".{module}", __package__), function or cmd_name)
            self.add_command(_with_help(command))
        return super().get_command(ctx, cmd_name)


@click.group(cls=OneSentenceGroup, context_settings=_HELP)
@click.version_option(package_name="lmdb-outbox", prog_name="atb")
def atb() -> None:
    """Tools of the lmdb-outbox library."""


@atb.group(cls=CommandsOnDemand, context_settings=_HELP)
def outbox() -> None:
    """Look at an outbox, drain it, compact it, rescue it.

    Settings come from the environment (OUTBOX_DIR, DATABASE_URL, ...); options win.
    """


_with_help(atb)
_with_help(outbox)


def main() -> None:
    """Entry point of the console scripts."""
    called = Path(sys.argv[0]).name
    atb(prog_name=called if called == "lmdb-outbox" else "atb")
