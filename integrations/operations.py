"""TRADING_OPERATIONS: how each method of a trading engine's DatabaseManager is made durable.

One readable table of declarations.  A manager that lacks one of the methods has one operation less; an application
declares its own with the same `ManagerOperation`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from .. import Entry, Operation
from ..errors import ConfigError, TargetMisconfigured
from ..records import fields_of, has_fields, with_field
from .ids.id_reserve import IdColumn
from .plain_data import call_in_zones, in_orders
from .roles import NO_SESSIONS, Balance, Order, Position, Session, is_exit_order
from .view.amounts import number, number_or_none

if TYPE_CHECKING:
    from .view.local_view import LocalView

# The key of what the adapter notes beside a call's arguments; docs/explanation/adapter.md lists it.
NOTES = "_outbox"
# The key, among the notes, of the balance before a call (`old`) and after it (`new`), as its caller knows them.  It has
# this name in entries that are stored.
BALANCES = "told"

Call = Mapping[str, Any]

# Of a field that was not given, which `like` may fill: None and () are values too.
_LEFT_OUT: Any = ...
# Fields that `like` does not fill, or in another way.
_OWN = (
    "name",
    "like",
    "args",
    "records",
    "sets_id",
    "keeps_id",
    "renames",
    "handler",
    "optional",
    "identity",
    "alternatives",
    "as_seen",
)


def answered(result: Any, wrote: bool) -> bool:
    """Whether a call succeeded: True, an id or any other value did; False did not; None only if rows were written."""
    return result is not False and (result is not None or wrote)


def wrote_rows(_: Any, wrote: bool) -> bool:
    """Whether a call whose result has no meaning succeeded: rows were written."""
    return wrote


def _unbound(*_: Any) -> Any:
    raise TargetMisconfigured(
        "this operation is declared, but bound to no manager",
        hint="give the target DurableDatabaseManager(...).outbox_operations, or bind(operations, factory)",
    )


@dataclass(frozen=True, eq=False)
class ManagerOperation(Operation):
    """One method of a manager.  `name` is the method's; what the method does is declared, never guessed from its name.

    `like`: an operation of `TRADING_OPERATIONS` that gives every field which is not given here; `creates=None`,
        `returns=None` and `identity=()` are given.
    `args`: the manager's name of an argument -> the standard name, by which all other fields know it.
    `records`: arguments that are dicts of fields, dataclasses or named tuples: their items count as arguments, by their
        own names.  Also a mapping to the names that count, none for all.  Those of which the code of the method takes
        items (`trade["pnl"]`, `Trade(**trade)`, `trade.pnl`), and those that are annotated with such a class, are found
        at wiring.
    `sets_id`: an argument -> its field or key in which the method leaves the id of the new row (`fill.id = row.id`), so
        that an outage leaves it there, too.  Found at wiring where the method's code shows it.
    `keeps_id`: those of them whose object the method saves under the id that it has, if it has one.  Found as well.
    `renames`: the former name of an argument -> its present one, for entries that an older version has stored.
    `identity`: names of arguments; also several alternatives, of which the first without a None counts.
    `order_by`: an argument's name or a callable; by default the trading session that is current at the call.
    `checks`: `check(call, view)` raises ValueError for a call that the local view already shows to be impossible;
        asked only while the manager itself cannot be.
    `success`: `success(result, wrote)`: whether a replay succeeded, since managers swallow errors.
    `creates`: the `table`, `table.column` or `schema.table.column` of which the method returns a new id.
    `returns`: what the call returns at once during an outage, where it creates no id; a callable is given the
        arguments by name, those left out with their defaults, and makes it of them.  Left out: what such calls were
        seen to return, where that is known.
    `context`: whether the method is a context manager that changes the balance.
    `balance`, `amount`: what becomes of the session's balance, and the argument that holds the amount; `-` before its
        name: the balance becomes less by it.
    `session`, `position`, `order`: what becomes of the session, of a position and of an order.
    `never_refused`: `f(call)`: whether a call must not raise even when the store is halted: an exit must go out.
    `optional`: whether a manager may lack the method.

    Raises `ConfigError` for a declaration that contradicts itself.
    """

    identity: str | tuple[Any, ...] | Callable[[Mapping[str, Any]], Any] = _LEFT_OUT
    handler: Callable[..., Any] | None = _unbound
    # Rows that triggers keep out are missing without the outbox, too.
    may_vanish: bool = True
    like: str | None = None
    args: Mapping[str, str] = field(default_factory=dict)
    records: Mapping[str, Collection[str]] | tuple[str, ...] | str = field(default_factory=dict)
    sets_id: Mapping[str, str] = field(default_factory=dict)
    keeps_id: Collection[str] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    alternatives: tuple[tuple[str, ...], ...] = ()
    checks: tuple[Callable[[Call, LocalView], None], ...] = ()
    success: Callable[[Any, bool], bool] = answered
    creates: str | None = _LEFT_OUT
    returns: Any = _LEFT_OUT
    context: bool = False
    balance: Balance | None = None
    amount: str | None = None
    session: Session | None = None
    position: Position | None = None
    order: Order | None = None
    never_refused: Callable[[Call], bool] | None = None
    optional: bool = False
    # Whether a call returns in an outage what such calls were seen to return, since `returns` was left out
    as_seen: bool = False

    def __post_init__(self) -> None:
        if self.like is not None:
            self._take_over(self.like)
        left_out = self.returns is _LEFT_OUT or (self.as_seen and self.returns is None)
        object.__setattr__(self, "as_seen", left_out and not (self.context or self.best_effort))
        for name, nothing in (("identity", ()), ("creates", None), ("returns", None)):
            if getattr(self, name) is _LEFT_OUT:
                object.__setattr__(self, name, nothing)
        if not isinstance(self.records, Mapping):
            names = (self.records,) if isinstance(self.records, str) else self.records
            object.__setattr__(self, "records", dict.fromkeys(names, ()))
        if (self.balance is None) != (self.amount is None):
            raise ConfigError(
                f"operation {self.name!r} declares {'an amount' if self.balance is None else 'a balance'} alone",
                hint='give both: balance=Balance.CHANGE, amount="pnl"',
            )
        if self.creates is not None and not (0 < len(self.creates.split(".")) <= 3 and all(self.creates.split("."))):
            raise ConfigError(
                f"operation {self.name!r} creates {self.creates!r}",
                hint="allowed: 'table', 'table.column' or 'schema.table.column'",
            )
        if len(set(self.args.values())) < len(self.args):
            raise ConfigError(
                f"operation {self.name!r} gives two of its arguments one standard name: {self.args}",
                hint="one argument for each standard name",
            )
        if isinstance(self.identity, str):
            object.__setattr__(self, "identity", (self.identity,))
        if isinstance(self.identity, (tuple, list)) and self.identity:
            several = not isinstance(self.identity[0], str)
            found = tuple(map(tuple, self.identity)) if several else (tuple(self.identity),)
            object.__setattr__(self, "alternatives", tuple(tuple(map(self.standard_name, names)) for names in found))
            object.__setattr__(self, "identity", self._first_complete)
        elif getattr(self.identity, "__func__", None) is ManagerOperation._first_complete:
            # A copy with other fields is asked itself.
            object.__setattr__(self, "identity", self._first_complete)
        super().__post_init__()

    def _take_over(self, name: str) -> None:
        base = next((operation for operation in TRADING_OPERATIONS if operation.name == name), None)
        if base is None:
            raise ConfigError(
                f"operation {self.name!r} is declared like {name!r}, which is no trading operation",
                hint=f"one of {', '.join(operation.name for operation in TRADING_OPERATIONS)}",
            )
        for one in fields(base):
            if one.name in _OWN:
                continue
            if one.name == "returns" and base.as_seen:
                continue
            if getattr(self, one.name) == one.default:
                object.__setattr__(self, one.name, getattr(base, one.name))
        if self.identity is _LEFT_OUT and base.alternatives:
            object.__setattr__(self, "identity", base.alternatives)
        own = {mine: base.args.get(standard, standard) for mine, standard in self.args.items()}
        inherited = {theirs: standard for theirs, standard in base.args.items() if standard not in own.values()}
        object.__setattr__(self, "args", {**inherited, **own})

    @cached_property
    def has_role(self) -> bool:
        """Whether it does something to a balance, session, position or order, as far as it is declared."""
        return any(role is not None for role in (self.balance, self.session, self.position, self.order))

    @property
    def names_row(self) -> bool:
        """Whether a call changes a position or an order that it names."""
        changes = self.position not in (None, Position.OPENS)
        return changes or (self.order is Order.UPDATES and self.position is None)

    @property
    def is_told_by_code(self) -> bool:
        """Whether an outage may answer what the code shows; not where False may mean that a call was applied."""
        return self.as_seen and self.success is answered

    def standard_name(self, name: str) -> str:
        """The standard name of one of the manager's arguments."""
        return self.args.get(name, name)

    def own_name(self, name: str) -> str:
        """The manager's name of an argument that is known by its standard name."""
        return self._own_names.get(name, name)

    @cached_property
    def _own_names(self) -> Mapping[str, str]:
        return {standard: own for own, standard in self.args.items()}

    def standard(self, call: Call) -> Call:
        """A call's arguments by their standard names."""
        if not (self.args or self.records):
            return call
        named = {self.standard_name(name): value for name, value in call.items()}
        for record in self.records:
            named = {self.standard_name(key): value for key, value in self._items(record, call).items()} | named
        return named

    def _items(self, record: str, call: Call) -> Mapping[str, Any]:
        """The fields of one of its records that count as arguments."""
        given, names = call.get(record), cast(Mapping[str, Collection[str]], self.records)[record]
        if isinstance(given, dict):
            return {key: value for key, value in given.items() if isinstance(key, str) and (not names or key in names)}
        given = fields_of(given) if has_fields(type(given)) else {}
        return {key: value for key, value in given.items() if not key.startswith("__")}

    @cached_property
    def amount_name(self) -> str | None:
        """The standard name of the argument that holds the amount."""
        return None if self.amount is None else self.standard_name(self.amount.removeprefix("-"))

    def amount_in(self, call: Call) -> Any:
        """By how much, or to what, a call with standard names changes the balance; None where it does not say."""
        value = None if self.amount is None else call.get(str(self.amount_name))
        if self.amount is None or not self.amount.startswith("-") or number_or_none(value) is None:
            return value
        return -(value if isinstance(value, float | Decimal) else number(value))

    def amount_of(self, call: Call) -> Any:
        """By how much, or to what, a call with the manager's own names changes the balance."""
        return self.amount_in(self.standard(call))

    def of_row(self, call: dict[str, Any], row: Callable[[Any], Any]) -> dict[str, Any]:
        """A call with the id of the position that it is meant for; `row(id)` gives that."""
        name = self.own_name("position_id")
        changed = {name: row(call[name])} if name in call else {}
        for record in self.records:
            items = self._items(record, call)
            if name in items:
                given, new = call[record], row(items[name])
                changed[record] = {**given, name: new} if isinstance(given, dict) else with_field(given, name, new)
        return {**call, **changed} if changed else call

    def answer_to(self, call: Call, notes: Mapping[str, Any]) -> Any:
        """What the call returns without the manager's own answer."""
        if "id" in notes:
            return notes["id"]
        return self.returns({**notes.get("defaults", {}), **call}) if callable(self.returns) else self.returns

    def _first_complete(self, args: Call) -> Any:
        standard = self.standard(args)
        for names in self.alternatives:
            values = [standard.get(name) for name in names]
            if None not in values:
                return [list(names), values]
        return None

    def order_of(self, args: Call) -> Any:
        """See `Operation.order_of`; by default the session that was current at the call."""
        if isinstance(self.order_by, str):
            return self._argument(self.standard(args), self.standard_name(self.order_by), "ordering key")
        if self.order_by is not None:
            return super().order_of(args)
        session = args[NOTES].get("session")
        # Without sessions it is unknown which calls belong together.
        return None if session in (None, NO_SESSIONS) else f"session:{session}"

    def needed(self) -> list[str]:
        """The standard names of the arguments without which a manager's method does not fit this declaration."""
        named = [name for names in self.alternatives for name in names] if not self.optional else []
        named += [self.standard_name(self.order_by)] if isinstance(self.order_by, str) else []
        named += [self.amount_name] if self.amount_name is not None else []
        # A trade may close a position or none.
        moved = (Position.UPDATES, Position.REDUCES, Position.ENLARGES)
        return [*named, "position_id"] if self.position in moved else named

    @cached_property
    def id_column(self) -> IdColumn:
        """The column of the id that a call creates."""
        return IdColumn.named(self.creates)


def notes_of(entry: Entry) -> Mapping[str, Any]:
    """What the adapter noted beside the arguments of a call."""
    notes: Mapping[str, Any] = entry.args[NOTES]
    return notes


def told_id(notes: Mapping[str, Any]) -> Any:
    """The id of the new row that the caller has without a delivery; None where there is none."""
    return None if notes.get("untold") else notes.get("id")


def call_of(entry: Entry) -> dict[str, Any]:
    """The arguments of a call by name, as the manager takes them."""
    call = {name: value for name, value in entry.args.items() if name != NOTES}
    notes = entry.args.get(NOTES, {})
    return in_orders(call_in_zones(call, notes), notes)


@dataclass(frozen=True, slots=True)
class StoredCall:
    """One call as its entry holds it: what was noted beside the arguments, and these as the manager takes them."""

    operation: ManagerOperation
    entry: Entry
    notes: Mapping[str, Any]
    given: dict[str, Any]

    @classmethod
    def of(cls, operation: ManagerOperation, entry: Entry) -> StoredCall:
        """The call of an entry."""
        return cls(operation, entry, notes_of(entry), call_of(entry))


def _declare(name: str, **fields: Any) -> ManagerOperation:
    return ManagerOperation(name, optional=True, **fields)


TRADING_OPERATIONS: tuple[ManagerOperation, ...] = (
    # Identities are keys that callers make.  A position's or a session's id is none: an engine that scales out writes
    # several trades of one position, and a session that is resumed ends twice.
    # -- sessions
    _declare("create_trading_session", creates="trading_sessions", session=Session.BEGINS),
    _declare("end_trading_session", success=wrote_rows, session=Session.ENDS),
    # -- balance: equal changes are different intents unless the caller gives a correlation_id
    _declare("update_balance", returns=True, balance=Balance.SET, amount="new_balance"),
    _declare(
        "atomic_balance_update", context=True, identity=("correlation_id", "reason"), success=wrote_rows,
        balance=Balance.CHANGE, amount="balance_change",
    ),
    _declare(
        "atomic_position_reconciliation", context=True, creates="trades", success=wrote_rows,
        args={"position_db_id": "position_id"}, balance=Balance.CHANGE, amount="realized_pnl",
        position=Position.CLOSES,
    ),
    # -- positions: A -> B -> A are three updates, two equal partial exits are two
    _declare(
        "log_position", identity=(("client_order_id",), ("entry_order_id",)), creates="positions",
        position=Position.OPENS, order=Order.UPDATES,
    ),
    _declare("update_position", returns=True, position=Position.UPDATES),
    _declare("close_position", returns=True, position=Position.CLOSES),
    _declare("apply_partial_exit_update", success=wrote_rows, position=Position.REDUCES),
    _declare("apply_scale_in_update", success=wrote_rows, position=Position.ENLARGES),
    # -- trades
    _declare("log_trade", identity="exit_order_id", creates="trades", position=Position.CLOSES),
    # -- order journal
    _declare(
        "create_order_journal_entry", identity="client_order_id", creates="orders", order=Order.OPENS,
        never_refused=is_exit_order,
    ),
    _declare("update_order_journal", returns=True, order=Order.UPDATES),
    _declare("update_order_status_new", returns=True, order=Order.UPDATES),
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
