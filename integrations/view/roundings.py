"""Roundings: what a manager's own code rounds, beside its columns: the balance that a read shows or a call makes.

And the arithmetics in which it may add to a balance, as far as the balances that it showed leave open: see `Sums`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from itertools import product
from typing import Any

from .amounts import SCALES, places, rounded
from .explanations import ARITHMETIC

# The reads of which the view takes the balance, and rows.
_BALANCE, _ROWS = "get_current_balance", ("get_active_positions", "get_unresolved_orders")
# An arithmetic, and the decimal places to which its sum is rounded.
Pair = tuple[str, int | None]


@dataclass(slots=True)
class Roundings:
    """What is known of them."""

    # Operations and reads whose code rounds, and how many decimal places it keeps; of the code, and not stored.
    methods: Mapping[str, int] = field(default_factory=dict)
    # The decimal places of the columns that were seen, None among them for a column that does not round.
    scales: Callable[[], Collection[int | None]] = tuple
    # operation -> the decimal places of all balances that it was seen to make.
    possible: dict[str, set[int | None]] = field(default_factory=dict)
    # session -> the balance that its last call wrote, where the read shows it rounded; not stored.
    written: dict[Any, Decimal] = field(default_factory=dict)

    def rounds(self, name: str) -> bool:
        """Whether the code of an operation or a read may round what the columns do not."""
        kept = self.methods.get(name)
        if kept is None:
            return False
        scales = self.scales()
        return not (kept and scales and all(one is not None and one <= kept for one in scales))

    @property
    def hides_balance(self) -> bool:
        """Whether the balance may have more decimal places than the read shows."""
        return self.rounds(_BALANCE)

    def in_rows(self, operation: str) -> bool:
        """Whether code may round what such calls make of rows, in the call or in the read."""
        return any(map(self.rounds, (operation, *_ROWS)))

    def finer(self, operation: str, given: Mapping[str, int], seen: Mapping[str, int]) -> list[str]:
        """The arguments with more decimal places than such calls were `seen` with: code may round them in rows."""
        kept = [self.methods[name] for name in (operation, *_ROWS) if self.rounds(name)]
        return sorted(name for name, count in given.items() if kept and count > max(min(kept), seen.get(name, count)))

    def observe(self, operation: str, scales: Collection[int | None]) -> None:
        """Take in to which decimal places a balance that the operation made may have been rounded."""
        if scales and self.rounds(operation):
            self.possible[operation] = (self.possible.get(operation, set(SCALES)) & set(scales)) or set(scales)

    def made(self, operation: str, balance: Decimal) -> set[Decimal]:
        """What the operation's own code may make of a balance before it writes it."""
        if not self.rounds(operation):
            return {balance}
        scales, modes = self.possible.get(operation, set(SCALES)), (ROUND_HALF_UP, ROUND_HALF_EVEN)
        return {rounded(balance, scale, mode) for scale in scales for mode in modes}

    def is_shown_as(self, shown: Decimal, exact: Decimal) -> bool:
        """Whether a balance may be shown as that, with fewer decimal places than it has."""
        if not self.hides_balance or places(exact) <= places(shown):
            return shown == exact
        return abs(shown - exact) < Decimal(1).scaleb(-places(shown))

    def note(self, session: Any, shown: Decimal, amounts: Iterable[tuple[int | None, Decimal | None]]) -> None:
        """Note the balance that a call wrote, one of the `amounts` that it wrote, each with its column's places."""
        found = {rounded(one, scale) for scale, one in amounts if one is not None and self.is_shown_as(shown, one)}
        self.written.pop(session, None)
        if len(found) == 1:
            self.written[session] = found.pop()

    def exact(self, session: Any, shown: Any, known: Decimal | None) -> Decimal | None:
        """The exact balance that is shown: the known one, or that which was written; None where neither is."""
        for one in (known, self.written.get(session)):
            if one is not None and shown is not None and self.is_shown_as(shown, one):
                return one
        return None

    def dump(self) -> dict[str, Any]:
        """Its state, to be stored."""
        return {operation: sorted(scales, key=str) for operation, scales in self.possible.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `dump` gave."""
        self.possible = {operation: set(scales) for operation, scales in state.items()}


@dataclass(slots=True)
class Sums:
    """What is open.  `contradicted`: what together gave another balance than was shown."""

    possible: set[str] = field(default_factory=lambda: set(ARITHMETIC))
    contradicted: set[Pair] = field(default_factory=set)
    roundings: Roundings = field(default_factory=Roundings)

    def pairs(self, scales: Collection[int | None]) -> set[Pair]:
        """What is possible together."""
        possible = set(product(self.possible, scales))
        # Where one operation adds otherwise than another, each may be contradicted.
        return (possible - self.contradicted) or possible

    def observe(self, fitting: Collection[Pair]) -> None:
        """Take in what gave the balance that was shown; nothing where the call did something else to it."""
        if fitting:
            self.contradicted |= set(product(ARITHMETIC, SCALES)) - set(fitting)

    def dump(self) -> dict[str, Any]:
        """Its state, to be stored."""
        return {
            "possible_sums": sorted(self.possible),
            "contradicted": sorted(map(list, self.contradicted), key=str),
        }

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Sums:
        """The inverse of `dump`."""
        contradicted = {(sum_, scale) for sum_, scale in state.get("contradicted", ())}
        return cls(set(state.get("possible_sums", ARITHMETIC)), contradicted)
