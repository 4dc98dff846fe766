"""Handlers: refuses callables and results whose work has not been done when they return.

A call proves nothing for a coroutine, a generator or a future: their work runs later or never.  Such a callable is
refused where it is declared, and such a result where it appears.
"""

from __future__ import annotations

import concurrent.futures
import functools
import inspect
import threading
import types
from collections.abc import Callable
from typing import Any

from .errors import ConfigError

_LAZY = (
    map,
    filter,
    zip,
    functools.partial,
    types.FunctionType,
    types.MethodType,
    concurrent.futures.Future,
)


def check_callable(owner: str, role: str, given: Any, positions: int | None = None) -> None:
    """Refuse what cannot be `role` of `owner`, called with so many positional arguments.

    Raises `ConfigError` for a class as a handler, a coroutine or generator function, and a signature that does not fit.
    """
    said = f"{owner}: {role} {given!r}"
    if not callable(given):
        raise ConfigError(f"{said} is not callable", hint="pass a function")
    if role == "handler" and inspect.isclass(given):
        raise ConfigError(f"{said} is a class", hint="a call only makes an instance: pass a function")
    if _is_deferred(given):
        raise ConfigError(f"{said} is asynchronous or a generator", hint="a call does not run it: pass a function")
    if positions is not None and not _takes(given, positions):
        raise ConfigError(f"{said} does not take {positions} positional arguments", hint=f"it is {_signature(given)}")


def is_unfinished(value: Any) -> bool:
    """Whether a result stands for work that has not been done: an awaitable, a generator, a future, a function."""
    if inspect.isawaitable(value) or inspect.isgenerator(value) or inspect.isasyncgen(value):
        return True
    if isinstance(value, _LAZY):
        return True
    # Of `contextlib.contextmanager`, whose body begins with `with`.
    inner = getattr(value, "__dict__", {}).get("gen")
    if inspect.isgenerator(inner) or inspect.isasyncgen(inner):
        return True
    # Futures of other libraries; results of task queues and of pools.
    return _has_methods(value, "add_done_callback") or _has_methods(value, "ready", "successful")


def discard(value: Any) -> None:
    """Close what was not run, so that Python does not warn of it."""
    if inspect.iscoroutine(value) or inspect.isgenerator(value):
        value.close()


def is_for_the_thread(exc: BaseException) -> bool:
    """Whether an exception that leaves a handler is meant for the program: Ctrl-C, or a signal handler's exit.

    Python runs signal handlers in the main thread only.  Anything else is the handler's own, such as the CancelledError
    of an event loop that it ran, or the SystemExit of a function that it called.
    """
    return isinstance(exc, (KeyboardInterrupt, SystemExit)) and threading.current_thread() is threading.main_thread()


def _is_deferred(given: Any) -> bool:
    while isinstance(given, functools.partial):
        given = given.func
    # An object with `__call__`, which is what the others are functions of.
    for one in (given, inspect.getattr_static(type(given), "__call__", None)):
        if inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) or inspect.isgeneratorfunction(one):
            return True
    return False


def _takes(given: Callable[..., Any], positions: int) -> bool:
    signature = _signature(given)
    if signature is None:
        return True
    try:
        signature.bind(*[None] * positions)
    except TypeError:
        return False
    return True


def _signature(given: Callable[..., Any]) -> inspect.Signature | None:
    """The signature, or None where Python knows none, as of some functions that are written in C."""
    try:
        return inspect.signature(given)
    except (TypeError, ValueError):
        return None


def _has_methods(value: Any, *names: str) -> bool:
    return all(callable(getattr(type(value), name, None)) for name in names)
