"""Stepwise: a manager's generator works after the call has returned; each of its steps is watched like the call."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, _GeneratorContextManager
from inspect import isgenerator
from typing import Any

Watching = Callable[[], AbstractContextManager[Any]]


class Stepwise(Generator[Any, Any, Any]):
    """A generator whose steps run in a context of their own each."""

    def __init__(self, generator: Generator[Any, Any, Any], watching: Watching) -> None:
        self._generator, self._watching = generator, watching

    def send(self, value: Any) -> Any:
        """See `Generator`."""
        with self._watching():
            return self._generator.send(value)

    def throw(self, *exc: Any) -> Any:
        """See `Generator`."""
        with self._watching():
            return self._generator.throw(*exc)

    def close(self) -> None:
        """See `Generator`."""
        self._generator.close()


def stepwise(value: Any, watching: Watching) -> Any:
    """What a method has answered; a generator, or the context manager of one, with its steps watched."""
    if isgenerator(value):
        return Stepwise(value, watching)
    if isinstance(value, _GeneratorContextManager) and isgenerator(value.gen):
        value.gen = Stepwise(value.gen, watching)
    return value
