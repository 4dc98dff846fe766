"""Help text: the docstrings of the commands, also where `python -OO` has dropped them."""

from __future__ import annotations

import ast
import inspect
import sys
from textwrap import dedent
from typing import TypeVar

import click

_DROPS_DOCSTRINGS = 2

Command = TypeVar("Command", bound=click.Command)


def with_help(command: Command) -> Command:
    """`command` with its function's docstring as its help, read from the source if Python has dropped it."""
    if command.help is None and command.callback is not None and sys.flags.optimize >= _DROPS_DOCSTRINGS:
        try:
            (function,) = ast.parse(dedent(inspect.getsource(command.callback))).body
        except OSError:  # installed without its source
            return command
        if isinstance(function, ast.FunctionDef):
            command.help = ast.get_docstring(function)
    return command
