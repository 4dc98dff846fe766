"""Sums: the arithmetics in which a manager may add to a balance, as far as the balances that it showed leave open."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from .explanations import ARITHMETIC, SCALES
from .roundings import Roundings

# An arithmetic, and the decimal places to which its sum is rounded.
Pair = tuple[str, int | None]


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
