"""TRADING_OPERATIONS: how each method of a trading engine's DatabaseManager is made durable.

One readable table of declarations.  A manager that lacks one of the methods has one operation less; an application
declares its own with the same `ManagerOperation`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import Entry, Operation
from ..errors import ConfigError, TargetMisconfigured
from . import checks, folds
from .local_view import LocalView

# What the adapter adds to a call's arguments: session, id, what the caller was told.
NOTES = "_outbox"

View = LocalView
Call = Mapping[str, Any]


def answered(result: Any, wrote: bool) -> bool:
    """Whether a call succeeded: True, an id or any other value did; False did not; None only if rows were written."""
    return result is not False and (result is not None or wrote)


def wrote_rows(_: Any, wrote: bool) -> bool:
    """Whether a call succeeded whose result says nothing: rows were written."""
    return wrote


def _unbound(*_: Any) -> Any:
    raise TargetMisconfigured(
        "this operation is declared, but bound to no manager",
        hint="give the target DurableDatabaseManager(...).outbox_operations, or bind(operations, factory)",
    )


@dataclass(frozen=True, eq=False)
class ManagerOperation(Operation):
    """One method of a manager.  `name` is the method's; identity and ordering key name its arguments.

    `identity`: names of arguments; also several alternatives, of which the first without a None counts.
    `order_by`: an argument's name or a callable; by default the trading session that is current at the call.
    `checks`: `check(call, view)` raises ValueError for a call that the local view already shows to be impossible;
        asked only while the manager itself cannot be.
    `success`: `success(result, wrote)` tells whether a replay succeeded, since managers swallow errors.
    `creates`: the table (`table` or `table.column`) of which the method returns a new integer id.
    `returns`: what the call returns at once during an outage, where it creates no id.
    `context`: whether the method is a context manager that changes the balance.
    `fold`: `fold(view, call, notes)` applies the call to the local view.
    `never_refused`: `f(call)` tells whether a call must not raise even when the store is halted: an exit must go out.
    `optional`: whether a manager may lack the method.
    """

    handler: Callable[..., Any] | None = _unbound
    alternatives: tuple[tuple[str, ...], ...] = ()
    checks: tuple[Callable[[Call, View], None], ...] = ()
    success: Callable[[Any, bool], bool] = answered
    creates: str | None = None
    returns: Any = None
    context: bool = False
    fold: Callable[[View, Call, Mapping[str, Any]], None] | None = None
    never_refused: Callable[[Call], bool] | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.identity, tuple) and self.identity and isinstance(self.identity[0], tuple):
            object.__setattr__(self, "alternatives", self.identity)
            object.__setattr__(self, "identity", self._first_complete)
        elif isinstance(self.identity, str):
            object.__setattr__(self, "alternatives", ((self.identity,),))
            object.__setattr__(self, "identity", self._first_complete)
        elif isinstance(self.identity, (tuple, list)) and self.identity:
            object.__setattr__(self, "alternatives", (tuple(self.identity),))
            object.__setattr__(self, "identity", self._first_complete)
        super().__post_init__()

    def _first_complete(self, args: Call) -> Any:
        for names in self.alternatives:
            values = [args.get(name) for name in names]
            if None not in values:
                return [list(names), values]
        return None

    def order_of(self, args: Call) -> Any:
        """See `Operation.order_of`; by default the session that was current at the call."""
        if self.order_by is not None:
            return super().order_of(args)
        session = args[NOTES].get("session")
        return None if session is None else f"session:{session}"

    def check_declaration(self, signature: inspect.Signature, method: Any = None) -> None:
        """Raise `ConfigError` where the method cannot be replayed, or has no argument that identity or order name.

        `method` is the manager's class's own, as it was defined; None where only the signature is known.
        """
        if isinstance(method, staticmethod | classmethod):
            raise ConfigError(f"operation {self.name!r} is a {type(method).__name__}, which has no sessions")
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
            raise ConfigError(f"operation {self.name!r} is asynchronous", hint="managers must be synchronous")
        given = signature.parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in given.values()):
            return
        named = [name for names in self.alternatives for name in names] if not self.optional else []
        named += [self.order_by] if isinstance(self.order_by, str) else []
        for name in named:
            if name not in given:
                raise ConfigError(
                    f"operation {self.name!r} names {name!r}, which is no argument of the manager's method",
                    hint=f"arguments: {', '.join(given)}",
                )

    def table_and_column(self) -> tuple[str, str]:
        """The table of which a call creates a row, and the column of its id."""
        table, _, column = (self.creates or "").partition(".")
        return table, column or "id"


def notes_of(entry: Entry) -> Mapping[str, Any]:
    """What the adapter noted beside the arguments of a call."""
    notes: Mapping[str, Any] = entry.args[NOTES]
    return notes


def call_of(entry: Entry) -> dict[str, Any]:
    """The arguments of a call by name, as the manager takes them."""
    return {name: value for name, value in entry.args.items() if name != NOTES}


def _declare(name: str, **fields: Any) -> ManagerOperation:
    return ManagerOperation(name, optional=True, **fields)


TRADING_OPERATIONS: tuple[ManagerOperation, ...] = (
    # -- sessions
    _declare("create_trading_session", creates="trading_sessions", fold=folds.session_created),
    _declare(
        "end_trading_session", identity="session_id", success=wrote_rows,
        checks=(checks.session_known,), fold=folds.session_ended,
    ),
    # -- balance: equal changes are different intents unless the caller gives a correlation_id
    _declare("update_balance", returns=True, checks=(checks.session_known,), fold=folds.balance_set),
    _declare(
        "atomic_balance_update", context=True, identity=("correlation_id", "reason"),
        success=wrote_rows, checks=(checks.session_known, checks.balance_stays_positive),
        fold=folds.balance_changed,
    ),
    _declare(
        "atomic_position_reconciliation", context=True, identity="position_db_id", creates="trades",
        success=wrote_rows, checks=(checks.position_open, checks.balance_stays_positive),
        fold=folds.position_reconciled,
    ),
    # -- positions: A -> B -> A are three updates, two equal partial exits are two
    _declare(
        "log_position", identity=(("client_order_id",), ("entry_order_id",)), creates="positions",
        fold=folds.position_opened,
    ),
    _declare("update_position", returns=True, fold=folds.position_updated),
    _declare("close_position", identity="position_id", returns=True, fold=folds.position_closed),
    _declare(
        "apply_partial_exit_update", success=wrote_rows, checks=(checks.exit_not_more_than_left,),
        fold=folds.position_reduced,
    ),
    _declare("apply_scale_in_update", success=wrote_rows, fold=folds.position_enlarged),
    # -- trades
    _declare(
        "log_trade", identity=(("position_id",), ("exit_order_id",)), creates="trades", fold=folds.trade_logged,
    ),
    # -- order journal
    _declare(
        "create_order_journal_entry", identity="client_order_id", creates="orders", fold=folds.order_journalled,
        never_refused=checks.is_exit_order,
    ),
    _declare("update_order_journal", returns=True, fold=folds.order_updated),
    _declare("update_order_status_new", returns=True, fold=folds.order_updated),
    # -- best effort: never raise because of an outage, never hold back anything
    _declare("log_event", best_effort=True),
    _declare("log_strategy_execution", best_effort=True),
    _declare("log_account_snapshot", best_effort=True),
    _declare("log_audit_event", best_effort=True),
)  # fmt: skip

# Set-based, or meaningless later: never queued.  They run when everything before them has been delivered, or fail.
AFTER_DRAIN = frozenset(
    {
        "set_current_session",
        "reassign_open_positions_to_session",
        "heal_positions_with_terminal_trades",
        "expire_stale_pending_orders",
        "set_system_halt",
    }
)
