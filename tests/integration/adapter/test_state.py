"""What a manager keeps in its attributes is what a plain manager would keep: in order, once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import OperationalError

from outbox import ConfigError
from outbox.integrations.adapter import Adapter
from outbox.integrations.calls import earlier_calls
from outbox.integrations.calls.local_answers import LocalAnswers
from outbox.integrations.durable import NotCaughtUp

from .small import Scene, SmallManager, Trade, scene

# Sessions that somebody opened before the call, and that nobody can find in the manager.
HELD: list[Any] = []


class Counting(SmallManager):
    """Numbers its rows before the write and counts its losses after it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.number = 0
        self.pnl = Decimal(0)
        self.recent: list[str] = []
        self.by_symbol: dict[str, int] = {}

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        self.number += 1
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, number=self.number)
            session.add(trade)
            session.flush()
            made = trade.id
        self.pnl += Decimal(note or 0)
        self.recent.append(symbol)
        self.by_symbol[symbol] = self.by_symbol.get(symbol, 0) + 1
        return made

    def daily_loss_exceeded(self) -> bool:
        return self.pnl < -100


def kept(manager: Any) -> tuple[Any, ...]:
    return manager.number, manager.pnl, manager.recent, manager.by_symbol


def test_attributes_are_those_of_plain_calls(postgres_url: str, outbox_dir: Path) -> None:
    plain = Counting(postgres_url)
    with scene(postgres_url, outbox_dir, Counting) as here:
        here.relay.start()
        for number in range(4):
            plain.log_trade(f"p{number % 2}", -60)
            here.manager.log_trade(f"p{number % 2}", -60)
            assert kept(here.manager) == kept(plain)
        assert here.manager.daily_loss_exceeded()
        assert here.rows("SELECT number FROM trades WHERE id > 4 ORDER BY id") == [(1,), (2,), (3,), (4,)]
    plain.engine.dispose()


def test_rows_of_an_outage_are_numbered_in_order(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Counting) as here:
        for number in range(3):
            here.manager.log_trade(f"s{number}", -60)
        assert here.manager.number == 3
        # A sum behind the write is certain, so that a risk limit holds in the outage too.
        assert here.manager.pnl == -180
        assert here.manager.daily_loss_exceeded()
        assert here.drain()
        assert kept(here.manager) == (3, Decimal(-180), ["s0", "s1", "s2"], {"s0": 1, "s1": 1, "s2": 1})
        assert here.rows("SELECT number FROM trades ORDER BY id") == [(1,), (2,), (3,)]


def test_attribute_that_waits_for_deliveries_is_not_answered(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Counting) as here:
        assert here.manager.recent == []
        here.manager.log_trade("s0", -60)
        with pytest.raises(NotCaughtUp, match="self.recent is changed by log_trade"):
            _ = here.manager.recent
        assert here.manager.number == 1
        assert here.drain()
        assert here.manager.recent == ["s0"]


class NumberingBlocks(Counting):
    """Numbers its blocks and its trades by one counter."""

    @contextmanager
    def atomic_balance_update(
        self, balance_change: Any, reason: str, session_id: int | None = None, correlation_id: str | None = None
    ) -> Iterator[dict[str, Any]]:
        self.number += 1
        own = self.number
        with super().atomic_balance_update(balance_change, reason, session_id, correlation_id) as told:
            yield {**told, "number": own}
            with self.session_factory.begin() as session:
                session.add(Trade(symbol="block", number=own))


@pytest.mark.parametrize("online", [True, False])
def test_block_counts_on_from_calls_while_it_is_entered(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, *, online: bool
) -> None:
    """Another thread's call, while the block asks PostgreSQL for what it yields, gets the next number."""
    with scene(postgres_url, outbox_dir, NumberingBlocks) as here:
        here.relay.start()
        session = here.manager.create_trading_session("s", 100)
        with here.manager.atomic_balance_update(1, "first", session, "c1") as told:
            assert told["number"] == 1
        if not online:
            here.relay.stop()
        answer = LocalAnswers.yielded

        def slowly(self: LocalAnswers, *args: Any, **kwargs: Any) -> Any:
            other = threading.Thread(target=here.manager.log_trade, args=("trade", 0, session))
            other.start()
            other.join()
            return answer(self, *args, **kwargs)

        monkeypatch.setattr(LocalAnswers, "yielded", slowly)
        with here.manager.atomic_balance_update(1, "second", session, "c2") as told:
            assert not online or told["number"] == 2
        assert here.drain()
        assert here.manager.number == 3
        numbers = here.rows("SELECT symbol, number FROM trades ORDER BY number")
        assert numbers == [("block", 1), ("block", 2), ("trade", 3)]


class Limited(SmallManager):
    """Refuses all but one call a day, before it turns to the database."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.today = 0

    def _count(self) -> None:
        if self.today >= 1:
            raise ValueError("the limit of the day is reached")
        self.today += 1

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        self._count()
        return super().log_trade(symbol, note, session_id)

    @contextmanager
    def atomic_balance_update(
        self, balance_change: Any, reason: str, session_id: int | None = None, correlation_id: str | None = None
    ) -> Iterator[dict[str, Any]]:
        self._count()
        with super().atomic_balance_update(balance_change, reason, session_id, correlation_id) as told:
            yield told


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("method", ["log_trade", "atomic_balance_update"])
def test_limit_reached_in_another_thread_refuses_the_call(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, method: str, *, online: bool
) -> None:
    """The other call comes between the rehearsal, in which the limit was not reached, and the order."""
    with scene(postgres_url, outbox_dir, Limited) as here:
        session = here.manager.create_trading_session("s", 100)
        if online:
            here.relay.start()
        others: list[threading.Thread] = []

        def behind_another(original: Any) -> Any:
            def call(*args: Any) -> Any:
                if not others:
                    others.append(threading.Thread(target=here.manager.log_trade, args=("other", 0, session)))
                    others[0].start()
                    others[0].join()
                return original(*args)

            return call

        # A call comes by the one before it takes the order, a block by the other.
        monkeypatch.setattr(Adapter, "_balance_lock", behind_another(Adapter._balance_lock))
        monkeypatch.setattr(earlier_calls, "stored", behind_another(earlier_calls.stored))
        with pytest.raises(ValueError, match="the limit of the day is reached"):
            if method == "log_trade":
                here.manager.log_trade("mine", 0, session)
            else:
                with here.manager.atomic_balance_update(1, "mine", session, "c1"):
                    pass
        assert here.drain()
        assert list(here.box.dead_letters()) == []
        assert here.rows("SELECT symbol FROM trades") == [("other",)]
        assert here.manager.today == 1


class Halting(SmallManager):
    """Takes no trade after a loss that is counted behind the write."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.pnl, self.halted = 0, False

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        if self.halted:
            raise ValueError("trading is halted")
        made = super().log_trade(symbol, note, session_id)
        self.pnl += note
        if self.pnl <= -100:
            self.halted = True
        return made


def test_call_that_finds_another_state_in_its_turn_is_refused(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes nothing before it writes, but a replay finds the state of its turn."""
    with scene(postgres_url, outbox_dir, Halting) as here:
        session = here.manager.create_trading_session("s", 100)
        balance_lock, others = Adapter._balance_lock, list[threading.Thread]()

        def behind_another(self: Adapter, *args: Any) -> Any:
            if not others:
                others.append(threading.Thread(target=here.manager.log_trade, args=("other", -150, session)))
                others[0].start()
                others[0].join()
            return balance_lock(self, *args)

        monkeypatch.setattr(Adapter, "_balance_lock", behind_another)
        with pytest.raises(ValueError, match="trading is halted"):
            here.manager.log_trade("mine", 0, session)
        assert here.drain()
        assert list(here.box.dead_letters()) == []
        assert here.rows("SELECT symbol FROM trades") == [("other",)]


class Losing(SmallManager):
    """Counts losses, and halts at a limit of its own."""

    limit = 100

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.losses, self.streak, self.pnl, self.worst, self.halted, self.known = 0, 0, 0, 0, False, 0

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        made = super().log_trade(symbol, note, session_id)
        if note < 0:
            self.losses += 1
            self.streak = self.streak + 1
        else:
            self.streak = 0
        self.worst = min(self.worst, note)
        self.pnl += note
        if self.pnl <= -self.limit and not self.halted:
            self.halted = True
        if made > 0:
            self.known += 1
        return made


def kept_by(manager: Any) -> tuple[Any, ...]:
    return manager.losses, manager.streak, manager.pnl, manager.worst, manager.halted


def test_branch_by_arguments_and_attributes_is_foreseen(postgres_url: str, outbox_dir: Path) -> None:
    amounts = (-60, 20, -30, -25, -6, 3)
    with scene(postgres_url, outbox_dir, Losing) as here:
        plain = Losing(postgres_url)
        for amount in amounts:
            here.manager.log_trade("s0", amount)
            plain.log_trade("s0", amount)
            assert kept_by(here.manager) == kept_by(plain)
        assert here.manager.halted
        assert here.drain()
        assert kept_by(here.manager) == kept_by(plain)
        plain.engine.dispose()


def test_sum_in_a_branch_by_the_database_is_not_foreseen(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Losing) as here:
        here.manager.log_trade("s0", -60)
        with pytest.raises(NotCaughtUp, match="self.known"):
            _ = here.manager.known
        assert here.drain()
        assert here.manager.known == 1


def test_sum_behind_an_early_return_is_not_foreseen(postgres_url: str, outbox_dir: Path) -> None:
    class Careful(SmallManager):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.made = 0

        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            with self.session_factory() as session:
                if session.query(Trade).filter_by(symbol=symbol).count():
                    return 0
            trade_id = super().log_trade(symbol, note, session_id)
            self.made += 1
            return trade_id

    with scene(postgres_url, outbox_dir, Careful) as here:
        here.manager.log_trade("s0")
        with pytest.raises(NotCaughtUp, match="self.made"):
            _ = here.manager.made
        assert here.drain()
        assert here.manager.made == 1


def test_sum_of_a_base_that_is_not_always_called_is_not_foreseen(postgres_url: str, outbox_dir: Path) -> None:
    class Choosy(Counting):
        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            return super().log_trade(symbol, note) if note else 0

    with scene(postgres_url, outbox_dir, Choosy) as here:
        here.manager.log_trade("s0", -60)
        with pytest.raises(NotCaughtUp, match="self.pnl"):
            _ = here.manager.pnl
        assert here.drain()
        assert here.manager.pnl == -60


def test_settled_calls_leave_nothing_behind(postgres_url: str, outbox_dir: Path) -> None:
    """An engine runs for months: whatever is kept for each call must end with it."""
    with scene(postgres_url, outbox_dir, Counting) as here:
        for number in range(3):
            here.manager.log_trade(f"s{number}", -60)
            here.manager.create_order_journal_entry(f"c{number}")
        assert here.drain()
        assert here.manager.pnl == -180
        carried = here.manager._adapter.replayer.carried
        assert (carried._waiting, carried._foreseen, carried._corrections) == ({}, {}, {})


def test_sum_of_a_refused_call_is_taken_back(postgres_url: str, outbox_dir: Path) -> None:
    class Refusing(Counting):
        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            with self.session_factory.begin() as session:
                if session.query(Trade).count():
                    raise ValueError("one is enough")
                session.add(Trade(symbol=symbol))
            self.pnl += note
            return 1

    with scene(postgres_url, outbox_dir, Refusing) as here:
        for note in (Decimal(-60), Decimal(-5)):
            here.manager.log_trade("s", note)
        assert here.manager.pnl == -65
        here.drain()
        assert here.box.status().dead_letters == 1
        assert here.manager.pnl == -60


def test_rows_show_a_sum_as_it_was_at_their_call(postgres_url: str, outbox_dir: Path) -> None:
    class Running(Counting):
        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            with self.session_factory.begin() as session:
                session.add(Trade(symbol=symbol, number=int(self.pnl)))
            self.pnl += note
            return 1

    with scene(postgres_url, outbox_dir, Running) as here:
        here.manager.log_trade("s0", 5)
        here.manager.log_trade("s1", 7)
        here.manager.pnl = Decimal(100)
        here.manager.log_trade("s2", 1)
        assert here.manager.pnl == 101
    with scene(postgres_url, outbox_dir, Running) as again:
        again.manager.log_trade("s3", 1)
        assert again.drain()
        assert again.rows("SELECT symbol, number FROM trades ORDER BY id") == [
            ("s0", 0),
            ("s1", 5),
            ("s2", 100),
            ("s3", 0),
        ]
        assert again.manager.pnl == 1


def test_numbers_go_on_after_a_restart_as_they_were_given(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Counting) as here:
        for number in range(3):
            here.manager.log_trade(f"s{number}")
    with scene(postgres_url, outbox_dir, Counting) as again:
        again.manager.log_trade("new process")
        assert again.drain()
        assert again.rows("SELECT number FROM trades ORDER BY id") == [(1,), (2,), (3,), (1,)]
        assert kept(again.manager) == (1, Decimal(0), ["new process"], {"new process": 1})


class Daily(SmallManager):
    """Numbers the rows of each day, and makes the entry of a symbol before the write and counts in it afterwards."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.day: str | None = None
        self.number = 0
        self.by_symbol: dict[str, int] = {}

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        if note != self.day:
            self.day, self.number = note, 0
        self.number += 1
        self.by_symbol.setdefault(symbol, 0)
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note=note, number=self.number)
            session.add(trade)
            session.flush()
            self.by_symbol[symbol] += 1
            return trade.id


def test_calls_of_yesterday_are_numbered_as_yesterday(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Daily) as here:
        for day in ("Mon", "Mon", "Tue", "Tue", "Tue"):
            here.manager.log_trade("A", day)
        assert here.drain()
        assert here.rows("SELECT note, number FROM trades ORDER BY id") == [
            ("Mon", 1), ("Mon", 2), ("Tue", 1), ("Tue", 2), ("Tue", 3)
        ]  # fmt: skip
        assert (here.manager.day, here.manager.number) == ("Tue", 3)


class FirstIn(SmallManager):
    """Sells the lot first that was bought first; lots are known by number."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.lots: dict[int, dict[str, Any]] = {}
        self.last: tuple[str, int] | None = None

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        if note is not None:
            self.lots[note] = {"symbol": symbol, "at": {"z": 1, "a": 2}}
            text, self.last = f"bought {note} after {self.last}", (symbol, note)
        else:
            number = next(iter(self.lots))
            text = f"sold {number} {json.dumps(self.lots.pop(number))}"
        with self.session_factory.begin() as session:
            session.add(trade := Trade(symbol=symbol, note=text))
            session.flush()
            return trade.id


def test_dict_by_number_and_tuple_are_kept_as_they_are(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, FirstIn) as here:
        for number in (30, 20, 10, None, None, None):
            here.manager.log_trade("A", number)
        assert here.manager.lots == {}
        assert here.drain()
        row = json.dumps({"symbol": "A", "at": {"z": 1, "a": 2}})
        bought = [f"bought {one} after {last}" for one, last in ((30, None), (20, ("A", 30)), (10, ("A", 20)))]
        sold = [f"sold {number} {row}" for number in (30, 20, 10)]
        assert here.rows("SELECT note FROM trades ORDER BY id") == [(one,) for one in bought + sold]


def test_attribute_changed_before_and_after_keeps_both(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Daily) as here:
        for symbol in "ABAA":
            here.manager.log_trade(symbol, "Mon")
        assert here.drain()
        assert here.manager.by_symbol == {"A": 3, "B": 1}


def test_batch_that_is_repeated_changes_attributes_once(postgres_url: str, outbox_dir: Path) -> None:
    class Failing(Counting):
        failures = 1

        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            made = super().log_trade(symbol, note, session_id)
            if symbol == "s2" and Failing.failures:
                Failing.failures -= 1
                raise OperationalError("SELECT 1", {}, ConnectionError("server closed the connection"))
            return made

    with scene(postgres_url, outbox_dir, Failing) as here:
        for number in range(4):
            here.manager.log_trade(f"s{number}", 1)
        assert here.drain()
        assert kept(here.manager) == (4, Decimal(4), ["s0", "s1", "s2", "s3"], {f"s{n}": 1 for n in range(4)})
        assert here.rows("SELECT symbol, number FROM trades ORDER BY id") == [(f"s{n}", n + 1) for n in range(4)]


def test_state_before_the_first_contact_is_carried_once_by_blocks(postgres_url: str, outbox_dir: Path) -> None:
    """The relay compares the balance before the call: the call itself has not turned to the database by that."""

    class Numbering(SmallManager):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.number = 0

        @contextmanager
        def atomic_balance_update(self, balance_change: Any, reason: str, *more: Any, **named: Any) -> Iterator[Any]:
            self.number += 1
            with super().atomic_balance_update(balance_change, reason, *more, **named) as told:
                yield told

    with scene(postgres_url, outbox_dir, Numbering) as here:
        here.relay.start()
        session = here.manager.create_trading_session("s", 100)
        for change in (-5, -10, -20):
            with here.manager.atomic_balance_update(change, "fee", session) as told:
                assert "old_balance" in told
            here.relay.stop()
        assert here.manager.number == 3
        assert here.drain()
        assert here.manager.number == 3


def test_call_that_is_buffered_is_refused_by_the_attributes_name(postgres_url: str, outbox_dir: Path) -> None:
    class Buffering(SmallManager):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            self._buffer: list[str] = []

        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            self._buffer.append(symbol)
            return 0

        def log_event(self, message: str) -> None:
            self._buffer.append(message)

    with scene(postgres_url, outbox_dir, Buffering) as here:
        with pytest.raises(ConfigError, match="kept the call in self._buffer"):
            here.manager.log_trade("IBM")
        here.manager.log_event("kept by the manager itself")
        assert here.manager._buffer == ["kept by the manager itself"]


def test_refusal_with_a_counter_counts(postgres_url: str, outbox_dir: Path) -> None:
    class Refusing(SmallManager):
        refused = 0

        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
            if not symbol:
                self.refused += 1
                return False
            if symbol == "?":
                self.refused += 1
                raise ValueError(symbol)
            return super().log_trade(symbol, note, session_id)

    with scene(postgres_url, outbox_dir, Refusing) as here:
        assert here.manager.log_trade("") is False
        with pytest.raises(ValueError, match=r"\?"):
            here.manager.log_trade("?")
        assert here.manager.refused == 2
        assert here.box.status().acknowledged == 0


def test_call_that_writes_nothing_is_shown(postgres_url: str, outbox_dir: Path) -> None:
    class Disabled(SmallManager):
        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
            return None

    with scene(postgres_url, outbox_dir, Disabled) as here:
        assert here.manager.log_trade("IBM") is None
        assert "log_trade" in here.box.status().notices["unwritten:log_trade"].message
    # The method may be mended since.
    with scene(postgres_url, outbox_dir) as here:
        assert "unwritten:log_trade" not in here.box.status().notices


def test_notice_of_a_call_without_a_write_ends_with_a_write(postgres_url: str, outbox_dir: Path) -> None:
    class Sometimes(SmallManager):
        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
            return super().log_trade(symbol, note, session_id) if symbol == "IBM" else None

    with scene(postgres_url, outbox_dir, Sometimes) as here:
        for _ in range(2):
            assert here.manager.log_trade("other") is None
        assert "unwritten:log_trade" in here.box.status().notices
        here.manager.log_trade("IBM")
        assert "unwritten:log_trade" not in here.box.status().notices
        # A method that writes sometimes is sound.
        here.manager.log_trade("other")
        assert "unwritten:log_trade" not in here.box.status().notices


@pytest.mark.parametrize("best_effort", [False, True])
def test_connection_of_its_own_is_refused_before_anything_is_stored(
    postgres_url: str, outbox_dir: Path, best_effort: bool
) -> None:
    class Raw(SmallManager):
        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            # Hidden from whoever reads the code before it is wired.
            with vars(self)["engine"].begin() as connection:
                connection.exec_driver_sql("INSERT INTO trades (symbol) VALUES ('raw')")
            return 1

        def log_event(self, message: str) -> None:
            self.log_trade(message)

    def refused(here: Scene) -> None:
        if best_effort:
            here.manager.log_event("x")
        else:
            with pytest.raises(ConfigError, match="opens a connection of its own"):
                here.manager.log_trade("IBM")

    with scene(postgres_url, outbox_dir, Raw) as here:
        refused(here)
        assert here.box.status().acknowledged == 0
        assert here.rows("SELECT * FROM trades") == []


def test_session_that_is_open_already_is_refused(postgres_url: str, outbox_dir: Path) -> None:
    class Held(SmallManager):
        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            HELD[0].execute(insert(Trade).values(symbol=symbol))
            HELD[0].commit()
            return 1

    with scene(postgres_url, outbox_dir, Held) as here:
        HELD[:] = [here.manager.session_factory()]
        HELD[0].connection()
        with pytest.raises(ConfigError, match="session that is open already"):
            here.manager.log_trade("IBM")
        HELD.pop().close()
        assert here.rows("SELECT * FROM trades") == []


class Accounting(SmallManager):
    """Attributes change in a base, in a helper and within a block."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.pnl, self.fees, self.rows, self.last = 0, Decimal(0), 0, ""
        self._lock = threading.Lock()

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        with self._lock:
            made: int = super().log_trade(symbol, note, session_id)
            self._account(note, fee=Decimal(note) / 10)
            self.rows += 1
            return made

    def _account(self, amount: Any, fee: Decimal, scale: int = 2) -> None:
        self.pnl += amount * scale
        self.fees += fee


class Deriving(Accounting):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        made = super().log_trade(symbol.lower(), note, session_id=session_id)
        self.last = symbol.upper()
        return made


class Leaving(Accounting):
    """Its helper may return before it counts."""

    def _account(self, amount: Any, fee: Decimal, scale: int = 2) -> None:
        if self.rows > 0:
            return
        self.pnl += amount


class Twice(Accounting):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        made = super().log_trade(symbol, note, session_id)
        if note > 5:
            self._account(note, Decimal(1))
        return made


class Repeating(Accounting):
    """Its helper runs for each row that the database gives."""

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        made = super().log_trade(symbol, note, session_id)
        with self.session_factory() as session:
            for _ in session.query(Trade):
                self._account(note, Decimal(1))
        return made


@pytest.mark.parametrize("manager_class", [Accounting, Deriving, Leaving, Twice])
def test_sums_of_bases_and_helpers_are_foreseen(manager_class: Any, postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, manager_class) as here:
        told = []
        for _ in range(2):
            here.manager.log_trade("S0", 7)
            told.append((here.manager.pnl, here.manager.fees, here.manager.rows, here.manager.last))
        assert here.drain()
        plain = manager_class(postgres_url)
        for answer in told:
            plain.log_trade("S0", 7)
            assert answer == (plain.pnl, plain.fees, plain.rows, plain.last)
        assert told[-1] == (here.manager.pnl, here.manager.fees, here.manager.rows, here.manager.last)
        plain.engine.dispose()


def test_helper_in_a_loop_is_not_foreseen(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Repeating) as here:
        here.manager.log_trade("s0", 7)
        with pytest.raises(NotCaughtUp, match="self.pnl"):
            _ = here.manager.pnl
        assert here.manager.rows == 1
