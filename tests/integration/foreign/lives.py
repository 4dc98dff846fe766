"""Lives of a host: its calls, with outages and restarts at moments that a seed decides."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from .calls import CALLS, Calls
from .journal import Journal


class Disturbance(Protocol):
    """What happens around the calls: PostgreSQL goes and comes back, the program is started again."""

    def outage(self, begins: bool) -> None: ...

    def restart(self) -> Any: ...


@dataclass
class Life:
    """A day with PostgreSQL up, then `steps` calls with an outage and a restart now and then."""

    kind: str
    seed: int
    steps: int
    made: int = field(default=0, init=False)

    def live(self, call: Journal, manager: Any, disturbance: Disturbance) -> Any:
        """Live it and return the manager that was used last; PostgreSQL is up at the end."""
        calls = CALLS[self.kind](self.seed, call)
        moments = random.Random(self.seed + 1)
        calls.begin(manager)
        calls.warm_up(manager)
        away = False
        for step in range(self.steps):
            self.made = step
            if moments.random() < 0.03:
                away = not away
                disturbance.outage(away)
            if moments.random() < 0.03:
                manager = disturbance.restart()
                self._resume(manager, calls)
            calls.step(manager)
        if away:
            disturbance.outage(False)
        self.made = self.steps
        return manager

    def _resume(self, manager: Any, calls: Calls) -> None:
        if self.kind == "classic":
            manager.set_current_session(calls.session)


class PlainLife:
    """No outage ever; a restart makes another manager."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self.manager = make()

    def outage(self, begins: bool) -> None:
        """The plain manager's database stays up."""

    def restart(self) -> Any:
        self.manager.engine.dispose()
        self.manager = self._make()
        return self.manager


class DurableLife:
    """Kills the server, and closes and opens store, relay and manager."""

    def __init__(
        self,
        make: Callable[[], AbstractContextManager[tuple[Any, Any]]],
        kill: Callable[[], None],
        start: Callable[[], None],
    ) -> None:
        self._make, self._kill, self._start = make, kill, start
        self._open = contextlib.ExitStack()
        self.manager, self.status = self._open.enter_context(make())

    def outage(self, begins: bool) -> None:
        (self._kill if begins else self._start)()

    def restart(self) -> Any:
        self.close()
        self.manager, self.status = self._open.enter_context(self._make())
        return self.manager

    def close(self) -> None:
        self._open.close()


@contextlib.contextmanager
def closing(life: DurableLife) -> Iterator[DurableLife]:
    try:
        yield life
    finally:
        life.close()
