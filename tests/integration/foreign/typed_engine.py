"""The typed engine: one class that calls its database class directly, with risk limits that the class counts."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import Any

from .journal import Journal
from .typed_manager import TypedManager
from .typed_models import Side, State

logger = logging.getLogger("typed.engine")

NAME, SYMBOL = "alpha", "ETH-USD"
CAPITAL = Decimal(25_000)
CENT = Decimal("0.0001")
MAX_ERRORS = 10
# The desk is closed here and another one opened.
ROLLOVER = 70


class TypedEngine:
    def __init__(self, store: TypedManager, journal: Journal, closes: list[float]) -> None:
        self.store = store
        self.call = journal
        self.closes = [Decimal(repr(close)).quantize(CENT) for close in closes]
        self.desk: int | None = None
        # Position -> its row, as the store told it or as it was booked.
        self.book: dict[int, dict[str, Any]] = {}
        self.stopped_entries: str | None = None
        self.failed: str | None = None
        self.note("constructed")

    def no_more_entries(self, reason: str) -> None:
        """The halt hook: exits go on."""
        self.stopped_entries = reason

    def note(self, body: str, **data: Any) -> None:
        try:
            self.call(self.store.add_note, body, **data)
        except Exception:
            logger.exception("the note was lost")

    @property
    def id(self) -> int:
        assert self.desk is not None, "the engine has not been started"
        return self.desk

    def start(self) -> None:
        found = self.call(self.store.open_desk)
        if found is None:
            self._open()
        else:
            self.desk = found
            self.book = {row["id"]: row for row in self.call(self.store.positions_of, found)}
            self.note("resumed", cash=str(self.call(self.store.get_cash, found)), positions=len(self.book))

    def _open(self) -> None:
        self.desk = self.call(self.store.open_session, NAME, SYMBOL, CAPITAL, {"bars": len(self.closes)})
        self.call(self.store.put_limit, self.id, "max_qty", Decimal(5))
        self.book = {}

    def run(self, first: int, last: int) -> None:
        """Trade the bars from `first` up to `last`; ten errors in a row stop the engine."""
        errors = 0
        for bar in range(first, last):
            try:
                self._bar(bar, self.closes[bar])
                errors = 0
            except Exception as error:
                logger.exception("bar %d", bar)
                errors += 1
                if errors >= MAX_ERRORS:
                    self.failed = f"bar {bar}: {type(error).__name__}: {error}"
                    return

    def _bar(self, bar: int, px: Decimal) -> None:
        if bar == ROLLOVER:
            self._roll_over(bar, px)
        cash = self.call(self.store.get_cash, self.id)
        self._check(bar)
        self._exits(bar, px)
        for position in self.book:
            if bar % 2 == 0:
                self.call(self.store.mark_position, position, px, stop=px * Decimal("0.95") if bar % 6 == 0 else None)
        may_enter = self.stopped_entries is None and not self._counts(bar)
        if bar % 5 == 2 and may_enter and len(self.book) < 4:
            self._enter(bar, px, cash)
        if bar % 25 == 20:
            self.call(self.store.put_limit, self.id, "max_qty", Decimal(bar))
        if bar % 45 == 40:
            self.call(self.store.set_cash, self.id, cash - Decimal("0.5"), "custody")
        if bar % 20 == 19:
            self._tickets()

    def _counts(self, bar: int) -> bool:
        """The day's numbers as the store has counted them; part of the record, like an answer."""
        store = self.store
        counted = self.call.record("counts", lambda: (store.trades_today, store.pnl, store.loss_limit_reached))
        return bool(counted[2]) and bar % 10 == 2

    def _check(self, bar: int) -> None:
        if bar % 15 == 0:
            rows = self.call(self.store.positions_of, self.id)
            if {row["id"] for row in rows} != self.book.keys():
                self.note("positions differ", stored=len(rows), known=len(self.book))

    def _enter(self, bar: int, px: Decimal, cash: Decimal) -> None:
        qty = (cash / 50 / px).quantize(CENT)
        side = Side.SELL if bar % 3 else Side.BUY
        ref = f"t-{bar}"
        self.call(self.store.place_ticket, self.id, ref, SYMBOL, side, qty, px, "entry", f"bar {bar}")
        if bar % 20 == 17:
            return
        with self.call.block(self.store.adjust_cash, self.id, -(qty * px / 1000).quantize(CENT), "fee") as told:
            position = self.call(
                self.store.book_position,
                self.id,
                SYMBOL,
                side,
                qty,
                px,
                ref,
                stop=px * Decimal("0.9"),
                targets=(px * 2, px * 3),
            )
        self.call(self.store.save_fills, position, [(px, qty / 2), (px + CENT, qty / 2)])
        self.call(self.store.move_ticket, ref, State.DONE, px)
        self.book[position] = {"id": position, "side": side, "size": qty, "entry_price": px, "entry_order_id": ref}
        assert told["new_balance"] < told["old_balance"]

    def _tickets(self) -> None:
        for row in self.call(self.store.working_tickets, self.id):
            self.call(self.store.move_ticket, row["ref"], State.DEAD)

    def _exits(self, bar: int, px: Decimal) -> None:
        for row in list(self.book.values()):
            age = bar - int(row["entry_order_id"].split("-")[1])
            if age >= 14:
                self._exit(bar, row, px)
            elif age == 7:
                by = (row["size"] / 4).quantize(CENT)
                self.call(self.store.reduce_position, row["id"], by, px)
                row["size"] -= by

    def _exit(self, bar: int, row: dict[str, Any], px: Decimal) -> None:
        move = px - row["entry_price"] if row["side"] is Side.BUY else row["entry_price"] - px
        amount = (move * row["size"]).quantize(CENT)
        ref = f"{row['entry_order_id']}-exit"
        if bar % 2:
            self.call(self.store.place_ticket, self.id, ref, SYMBOL, Side.SELL, row["size"], None, "exit")
        with self.call.block(self.store.adjust_cash, self.id, amount, "pnl"):
            if bar % 2:
                self.call(self.store.record_fill, self.id, row["id"], ref, row["size"], px, amount)
            else:
                self.call(
                    self.store.save_trade,
                    self.id,
                    row["size"],
                    px,
                    amount,
                    row["side"],
                    position=row["id"],
                    tags=["exit"],
                    meta={"entry": row["entry_price"].to_eng_string(), "age": [bar]},
                )
                self.call(self.store.flatten_position, row["id"], px)
        del self.book[row["id"]]

    def _roll_over(self, bar: int, px: Decimal) -> None:
        for row in list(self.book.values()):
            self._exit(bar, row, px)
        self.call(self.store.close_session, self.id, self.call(self.store.get_cash, self.id))
        self._open()

    def stop(self) -> None:
        """Close the desk; its positions stay open over night."""
        self.call(self.store.close_session, self.id, self.call(self.store.get_cash, self.id))
        self.note("stopped")
