"""Code version: another one where a method does something else, the same where it is only written otherwise."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Numeric, Table

from outbox.integrations.code.code_version import code_version

log = logging.getLogger(__name__)
TRADES = Table("trades", MetaData(), Column("id", Integer), Column("price", Numeric(18, 8)))


def rounded(price: Any) -> Any:
    return round(price, 2)


class Manager:
    def save(self, price: Any) -> Any:
        return self._write(rounded(price))

    def _write(self, price: Any) -> Any:
        return TRADES.insert().values(price=price)

    def other(self) -> None: ...


class Spelled(Manager):
    def save(self, price: Decimal) -> Decimal:
        """Save it."""
        log.info("saving %s", price)
        # As before.
        return self._write(rounded(price))  # type: ignore[no-any-return]


class OtherMethod(Manager):
    def other(self) -> None:
        raise NotImplementedError


class OtherMethodOnly(Manager):
    def save(self, price: Any) -> Any:
        return self._write(-rounded(price))


class OtherHelper(Manager):
    def _write(self, price: Any) -> Any:
        return TRADES.insert().values(price=price + 1)


Unread = type("Unread", (Manager,), {"save": lambda _, price: price})


@pytest.mark.parametrize(
    ("changed", "same"),
    [(Manager, True), (Spelled, True), (OtherMethod, True), (OtherMethodOnly, False), (OtherHelper, False)],
)
def test_code_version_of_a_change(changed: type, same: bool) -> None:
    assert (code_version(changed, "save") == code_version(Manager, "save")) is same


def test_code_version_of_another_column(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_version(Manager, "save")
    other = Table("trades", MetaData(), Column("id", Integer), Column("price", Numeric(18, 2)))
    monkeypatch.setitem(globals(), "TRADES", other)
    assert code_version(Manager, "save") != before


def test_code_version_of_a_helper_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_version(Manager, "save")
    monkeypatch.setitem(globals(), "rounded", lambda price: price)
    assert code_version(Manager, "save") != before


def test_code_version_says_its_form() -> None:
    assert code_version(Manager, "save").startswith("source:")
    assert code_version(Unread, "save").startswith("compiled:")


class Lot:
    def __hash__(self) -> int:
        return hash((1297801350865609918, id(self)))


class LotOfAnotherProcess:
    def __hash__(self) -> int:
        return hash((-938793317184667262, id(self)))


class Reading(Manager):
    def lots(self) -> Any:
        return [made() for made in (Lot,)]


def test_code_version_is_that_of_the_last_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen class of attrs has a `__hash__` with a number that differs in each process."""
    before = code_version(Reading, "lots")
    monkeypatch.setattr(Lot, "__hash__", LotOfAnotherProcess.__hash__)
    assert code_version(Reading, "lots") == before
