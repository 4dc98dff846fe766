"""Loads the operations that a host declares, from `MODULE:NAME`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from outbox import ConfigError, Operation

_OPTION, _EXAMPLE = "--operations", "myengine.outbox:OPERATIONS"
_NOT_FOUND = "run it where your program is, or set PYTHONPATH to that directory"


def required_operations(where: str | None) -> list[Operation]:
    """As `load_operations`; raises `ConfigError` where nothing is given."""
    if where is None:
        raise ConfigError("no operations are given", hint="give --operations MODULE:NAME or set OUTBOX_OPERATIONS")
    return load_operations(where)


def check_operations(where: str | None) -> None:
    """Raise `ConfigError` for a name that does not exist, though the operations may not be needed in the end.

    Nothing is called: what a host connects to for its operations may be away.
    """
    if where is not None:
        load(where, _OPTION, _EXAMPLE)


def load_operations(where: str, also: tuple[type, ...] = ()) -> list[Any]:
    """The operations declared at `module:name`, and what is of a type in `also`.

    Raises `ConfigError` naming what is wrong.
    """
    found = load(where, _OPTION, _EXAMPLE)
    with _code_of_the_host(where, _OPTION):
        found = found() if callable(found) else found
        declared = list(found) if isinstance(found, Iterable) else [found]
    strange = [one for one in declared if not isinstance(one, (Operation, *also))]
    if strange or not isinstance(found, Iterable):
        first = (strange or declared)[0]
        hint = "allowed: an iterable of Operation"
        if _is_read(first):
            hint = "for an engine's DatabaseManager give a callable that returns bind(OPERATIONS, factory)"
        raise ConfigError(f"{_OPTION} is {where!r}, with {_kind(first)}", hint=hint)
    return declared


def _kind(found: object) -> str:
    """What it is, for people: its repr may be anything."""
    name = type(found).__name__
    return "None" if found is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _is_read(declared: object) -> bool:
    """Whether it is a declared read, which `bind` leaves out; imported here, since it takes long and few need it."""
    from outbox.integrations.durable import ManagerRead

    return isinstance(declared, ManagerRead)


def load(where: str, parameter: str, example: str) -> Any:
    """What a host has at `module:name`.  Raises `ConfigError` naming what is wrong with `parameter`."""
    module_name, _, name = where.partition(":")
    if not module_name or not name or module_name.startswith("."):
        raise ConfigError(f"{parameter} is {where!r}", hint=f"allowed: MODULE:NAME, for example {example}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # and there it stays: handlers may import when they run
    with _code_of_the_host(where, parameter):
        module = importlib.import_module(module_name)
    if not hasattr(module, name):
        raise ConfigError(
            f"{parameter} is {where!r}, and {module_name} has no {name}", hint=f"allowed: MODULE:NAME, as in {example}"
        )
    return getattr(module, name)


@contextmanager
def _code_of_the_host(where: str, parameter: str) -> Iterator[None]:
    """Whatever it raises becomes a `ConfigError`."""
    try:
        yield
    except (Exception, SystemExit) as exc:
        kind = "" if isinstance(exc, ImportError) else f"{type(exc).__name__}: "
        said = (str(exc).strip().splitlines() or ["no reason given"])[0]
        hint = _NOT_FOUND if isinstance(exc, ModuleNotFoundError) else "correct that first"
        raise ConfigError(f"{parameter} is {where!r}, and loading it failed: {kind}{said}", hint=hint) from exc
