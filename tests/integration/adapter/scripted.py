"""A manager with what Python classes have beside methods, and the least engine around it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any

from outbox import OutboxConfig
from outbox.integrations.paper import DatabaseManager


class Manager(DatabaseManager):
    """Properties, constants, helpers, special methods, a private attribute and methods that call critical ones."""

    LIMIT = 5
    engine_name: str | None = None

    class Settings:
        retries = 3

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self.__secret = 7
        self.engine_name = "scripted"

    def secret(self) -> int:
        return self.__secret

    def record_fill(self, balance: int) -> bool:
        """A public method that reaches a critical one through a helper."""
        return self._book(balance)

    def _book(self, balance: int) -> bool:
        booked: bool = self.update_balance(Decimal(balance), "fill")
        return booked

    @property
    def balance(self) -> float:
        found: float = self.get_current_balance(self._current_session_id)
        return found

    def is_solvent(self) -> bool:
        """A method that is not declared, and reads only."""
        return bool(self.get_current_balance(self._current_session_id) > 0)

    @functools.cached_property
    def token(self) -> object:
        return object()

    @staticmethod
    def doubled(value: int) -> int:
        return 2 * value

    @classmethod
    def at(cls, url: str) -> Manager:
        return cls(url)

    def __len__(self) -> int:
        return self.LIMIT

    def __getitem__(self, index: int) -> int:
        return index

    def __call__(self, value: int) -> int:
        return value

    def __repr__(self) -> str:
        return f"<Manager of {self.engine_name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manager) and other.engine is self.engine

    def __hash__(self) -> int:
        return hash("manager")

    def __enter__(self) -> Manager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Engine:
    """Holds a manager, starts and stops, and can be told to halt."""

    def __init__(self, db_manager: Any) -> None:
        self.db_manager = db_manager

    def start(self) -> None:
        """Nothing to begin."""

    def stop(self) -> None:
        """Nothing to end."""

    def enter_close_only(self, reason: str) -> None:
        """No new entries."""


class Timed:
    """What a monitoring library puts in place of a method."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method, self.calls = method, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.method(*args, **kwargs)


def config(folder: Path, url: str, **settings: Any) -> OutboxConfig:
    return OutboxConfig(dir=str(folder), database_url=url, backoff_base=0.05, backoff_cap=0.3, **settings)
