"""`atb` and its group `outbox`.  Each command has a file of its own, imported when the command is called."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .common import Interrupted, OutputFails, ReaderLeft, WrongUse, is_of_the_output, print_any_text
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


class OneSentenceGroup(click.Group):
    """A group whose wrong options, here and in its commands, are one sentence instead of a usage text."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        print_any_text()
        with _brief_usage_errors(), _help_that_cannot_be_written():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _brief_usage_errors(), _help_that_cannot_be_written(), _interrupted_before_a_command():
            return super().invoke(ctx)


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


@contextmanager
def _help_that_cannot_be_written() -> Iterator[None]:
    """Help and version are printed by click itself, outside of any command."""
    try:
        yield
    except BrokenPipeError as exc:
        raise ReaderLeft from exc
    except OSError as exc:
        if not is_of_the_output(exc):
            raise
        raise OutputFails(exc) from exc


@contextmanager
def _interrupted_before_a_command() -> Iterator[None]:
    """As `in_one_sentence`: click's own exit code 1 would be a health or a finding."""
    try:
        yield
    except KeyboardInterrupt as exc:
        raise Interrupted("nothing is lost") from exc


@contextmanager
def _brief_usage_errors() -> Iterator[None]:
    try:
        yield
    except click.UsageError as exc:
        if type(exc).show is not click.UsageError.show:
            raise  # the help text, shown where no command was given
        sentence = exc.format_message().rstrip(".")
        if exc.ctx is not None:
            sentence += f" (see '{exc.ctx.command_path} --help')"
        # Without a context click leaves out the usage text.
        raise WrongUse(sentence) from exc
