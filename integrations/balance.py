"""What a balance block is told: by the manager in a transaction that is rolled back, or by the local view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import sessions
from .asof import AsOf
from .host import invoke
from .replay_session import ReplaySession, Watch, listen_to


class BalanceChange(dict[str, Any]):
    """`old_balance`, `new_balance` and `change` as Decimal, by attribute or by item, as managers yield them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def told_before(notes: Mapping[str, Any]) -> BalanceChange:
    """What the first call with the same identity was told."""
    told = notes["told"]
    return BalanceChange(old_balance=told["old"], new_balance=told["new"], change=told["new"] - told["old"])


class _Told(BaseException):
    """Ends the manager's block without effect; not an Exception, since managers catch those."""


def dry_run(manager: Any, replica: Any, method: str, call: dict[str, Any], as_of: AsOf) -> Any:
    """What `method` of `replica`, a copy of `manager`, yields now; nothing of it stays.

    Raises what the manager raises: a balance that would fall below zero, a position that is closed already.
    """
    told = None
    with manager.engine.connect() as connection:
        transaction = connection.begin()
        try:
            factory = sessions.factory_like(
                replica.session_factory,
                ReplaySession,
                bind=connection,
                join_transaction_mode="create_savepoint",
                info={"watch": Watch()},
            )
            replica.session_factory = factory
            made = sessions.session_class(factory)
            listen_to(made)
            as_of.listen(made)
            try:
                with invoke(getattr(replica, method), call) as told:
                    raise _Told
            except _Told:
                return told
        finally:
            transaction.rollback()
    return told
