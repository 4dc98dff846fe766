"""Bars on a terminal: whether it can draw them, and their look."""

from __future__ import annotations

import sys

from rich.console import Console


class Lines(Console):
    """A console whose reader may end early, which the commands answer themselves."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def screen(*, err: bool = False) -> Console | None:
    """The terminal behind stdout or stderr, if bars can be drawn there; None for pipes, files and dumb terminals.

    FORCE_COLOR lets rich take a file for a terminal, but a log with cursor movements in it is of no use.
    """
    stream = sys.stderr if err else sys.stdout
    if stream is None or not stream.isatty():
        return None
    console = Lines(stderr=err, highlight=False)
    return console if console.is_terminal and not console.is_dumb_terminal else None
