"""Lives of a program with a wrapped manager: processes that start in milliseconds and are killed for real.

They are forked from a server that has everything imported, before there is a thread or a store.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager
from outbox.integrations.replay.balance import Untold
from outbox.rescue import soundness, verify
from tests.unit.fakes.waiting import LONG

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])

# Where a life can end: just before a call is durable; durable, but nobody has heard; applied, but not committed in
# PostgreSQL; committed there, but not settled here.
MOMENTS = ("not durable", "durable", "applied", "committed")


class Killed(Exception):
    """The process died before it answered."""


class Raised(Exception):
    """The manager raised: `names` of the error's class and its bases."""

    def __init__(self, names: tuple[str, ...], said: str) -> None:
        super().__init__(f"{names[0]}: {said}")
        self.names = names


class Life:
    """One process; `factory` makes its manager.  End it with `close` or `kill`."""

    def __init__(
        self,
        factory: Callable[[], Any],
        folder: Path,
        url: str,
        operations: Iterable[Any] = TRADING_OPERATIONS,
        *,
        write_behind: bool = False,
        relays: bool = True,
    ) -> None:
        self._pipe, other = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(
            target=_live, args=(other, factory, folder, url, operations, write_behind, relays), daemon=True
        )
        self._process.start()
        other.close()
        self.ask("ready")

    def ask(self, what: str, *args: Any) -> Any:
        """Let the process do one thing.  Raises `Raised` or `Killed`."""
        try:
            self._pipe.send((what, args))
            assert self._pipe.poll(2 * LONG), f"no answer to {what}"
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionError) as exc:
            self._process.join()
            raise Killed from exc
        if kind == "raised":
            raise Raised(*value)
        return value

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.ask("call", name, args, kwargs)

    def block(
        self, *args: Any, inside: Iterable[tuple[str, tuple[Any, ...], dict[str, Any]]] = (), **named: Any
    ) -> Any:
        """`atomic_balance_update` with calls inside it; what it was told, or nothing where that is not known."""
        return self.ask("block", args, named, list(inside))

    def kill(self) -> None:
        """As by SIGKILL: nothing is closed or saved."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def close(self) -> None:
        """Close everything in order and end the process."""
        try:
            self.ask("close")
        finally:
            self._process.join(LONG)
            self.kill()


def _live(pipe: Any, factory: Any, folder: Path, url: str, operations: Any, write_behind: bool, relays: bool) -> None:
    config = OutboxConfig(backoff_base=0.01, backoff_cap=0.05)
    verify.check = _check
    box = Outbox.open(folder, config)
    durable: Any = DurableDatabaseManager(factory, box, operations, write_behind, wait_s=LONG)
    relay = Relay(box, PostgresTarget(url, durable.outbox_operations, config=config))
    if relays:
        relay.start()

    def close() -> None:
        relay.stop()
        durable.detach_outbox()
        if durable._host.built is not None:
            durable._host.built.close()
        box.close()

    def block(args: Any, named: Any, inside: Any) -> dict[str, Any]:
        with durable.atomic_balance_update(*args, **named) as told:
            for name, values, more in inside:
                getattr(durable, name)(*values, **more)
            if isinstance(told, Untold):
                return {}
            names = ("old_balance", "new_balance", "change")
            return {name: told[name] if isinstance(told, dict) else getattr(told, name) for name in names}

    deadly: list[Callable[[], None]] = []
    able: dict[str, Callable[..., Any]] = {
        "ready": lambda: None,
        "call": lambda name, args, kwargs: getattr(durable, name)(*args, **kwargs),
        "block": block,
        "die": lambda moment: deadly.append(_arm(durable._adapter, box, moment)),
        "live": lambda: deadly.pop()(),
        "drain": lambda timeout: relay.drain(timeout=timeout),
        "status": lambda: (
            box.status().pending, [(entry.operation, entry.error) for entry in box.dead_letters()],
            dict(box.status().alarms),
        ),
        "close": close,
    }  # fmt: skip
    while True:
        what, args = pipe.recv()
        try:
            pipe.send(("returned", able[what](*args)))
        except Exception as exc:  # noqa: BLE001 - it is raised where it was asked for
            pipe.send(("raised", (tuple(cls.__name__ for cls in type(exc).__mro__), str(exc))))
        if what == "close":
            return


def _check(directory: Path) -> None:
    """As `verify.check`, in a child that is forked instead of started: there are no threads yet."""
    child = os.fork()
    if child == 0:
        os._exit(any(soundness.problems(directory)))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"{directory} is damaged: {code}"


def _arm(adapter: Any, box: Outbox, moment: str) -> Callable[[], None]:
    """Die the next time that `moment` comes; returns how to undo it."""
    owner, name = {
        "not durable": (box, "submit"),
        "durable": (adapter.keeper, "follow"),
        "applied": (adapter.replayer.answers, "keep"),
        "committed": (box.store, "settle"),
    }[moment]
    assert callable(getattr(owner, name))
    setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    return lambda: delattr(owner, name)
