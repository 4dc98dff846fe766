"""Help text: the docstring of a command, read from its source where Python has dropped it."""

from __future__ import annotations

import ast
import inspect
from textwrap import dedent

import click


def help_of(command: click.Command) -> str | None:
    """The docstring of the command's function; None where the source is not installed."""
    if command.callback is None:
        return None
    try:
        (function,) = ast.parse(dedent(inspect.getsource(command.callback))).body
    except OSError:
        return None
    return ast.get_docstring(function) if isinstance(function, ast.FunctionDef) else None
