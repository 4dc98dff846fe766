"""Preflight: what does not fit is refused with its reason, and what is sound is accepted; no database is asked."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Optional
from uuid import UUID

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from outbox import ConfigError, Operation, Outbox
from outbox.integrations.code.method_code import facts_of
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager, ManagerOperation, ManagerRead
from outbox.integrations.paper import DatabaseManager
from outbox.integrations.preflight import beyond_call
from outbox.integrations.preflight.preflight import Fit, Kind, MethodFit, _show, look
from outbox.integrations.roles import declaration

from . import managers_that_misfit as managers


def fit_of(manager_class: Any, *more: Operation | ManagerRead, built: bool = False) -> Fit:
    operations = (*TRADING_OPERATIONS, *more)
    return look(manager_class, operations, manager=manager_class() if built else None)


def kinds(fit: Fit) -> dict[str, Kind]:
    return {method.name: method.kind for method in fit.methods}


MISFITS = [
    ("OtherNames", "none of its methods is declared", "save_trade"),
    ("OtherArguments", "needs 'new_balance'", "args="),
    ("HiddenSignature", "hides its signature", "functools.wraps"),
    ("Generates", "is a generator", "list"),
    ("GeneratesBelow", "is a generator", "list"),
    ("OpensABlock", "is a context manager", "context=True"),
    ("OpensNoBlock", "it is no context manager", "balance=Balance.CHANGE"),
    ("AnswersInsteadOfABlock", "it is no context manager", "balance=Balance.CHANGE"),
    ("Awaited", "asynchronous", "to_thread"),
    ("AwaitedBelow", "asynchronous", "enqueue_async"),
    ("GeneratedAsynchronously", "asynchronous", "enqueue_async"),
    ("Static", "staticmethod", "make it a method"),
    ("OfItsClass", "classmethod", "make it a method"),
    ("KeepsASession", "self.session, which is an open Session", "session_factory"),
    ("KeepsASessionPerThread", "self._local, which is an open Session", "session_factory"),
    ("Slotted", "self.stray, which is an open Session", "session_factory"),
    ("KeepsARegistry", "self.Session, which is a scoped_session", "session_factory"),
    ("DriverBeside", r"psycopg2.connect\(\)", "session_factory"),
    ("DriverOnly", "no attribute session_factory, but self.pool", "handlers"),
    ("EngineBeside", r"self.engine.begin\(\)", "session_factory"),
    ("SessionOfTheEngine", r"Session\(...\)", "session_factory"),
    ("FactoryOfTheModule", r"SessionLocal\(\)", "session_factory"),
    ("SessionOfAClass", r"ActiveRecord.session.add\(\)", "session_factory"),
    ("QueryOfAClass", r"ActiveRecord.query.filter_by\(\)", "session_factory"),
    ("DriverImportedInside", r"psycopg2.connect\(\)", "session_factory"),
    ("ReadOnlyFactory", "session_factory is a property", "setter"),
    ("TakesARow", "argument 'trade' is a Trade, which cannot be stored", "pass its values"),
    ("TakesASession", "argument 'session' is a Session, which cannot be stored", "pass its values"),
    ("ScopeOfTheModule", r"session_scope\(\)", "session_factory"),
    ("NamedSessionLocal", "self.SessionLocal is one", "rename it"),
    ("Asynchronous", "asynchronous", "to_thread"),
    ("ReturnsARow", "returns a Trade", "return the id"),
    ("FindsARow", "returns a Trade", "return the id"),
    ("PassesARowOn", "returns a Trade", "return the id"),
    ("AnnotatesARow", "returns a Trade", "return the id"),
]
# What only an object shows.
MISFITS_OF_OBJECTS = [
    ("Repositories", r"a dict of objects with a session factory of its own in \['trades'\].factory", "session_factory"),
    ("SlottedRepositories", "a SlottedRepository with an engine of its own", "session_factory"),
    ("ClosesOver", "a function with an engine of its own", "session_factory"),
    ("HandsItselfOver", r"calls self.trades.add\(\), whose object holds the manager", "hand it the session"),
    ("HandsItsScopeOver", r"calls self.trades.add\(\), whose object holds the manager", "hand it the session"),
    ("NumbersBeforeItsWrite", "it changes self.ids.last before it writes", "behind the write"),
    ("Lite", r"sqlite\+pysqlite", r"postgresql\+psycopg2://"),
]


@pytest.mark.parametrize(("name", "why", "way"), MISFITS)
def test_a_misfit_is_refused_by_its_class(name: str, why: str, way: str) -> None:
    fit = fit_of(getattr(managers, name))
    assert not fit.fits
    with pytest.raises(ConfigError, match=f"{name} cannot be made durable: .*{why}.*{way}"):
        fit.check()


BUILT = [*MISFITS_OF_OBJECTS, *(misfit for misfit in MISFITS if misfit[0] != "Asynchronous")]


@pytest.mark.parametrize(("name", "why", "way"), BUILT)
def test_a_misfit_is_refused_by_its_object(name: str, why: str, way: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot be made durable: .*{why}.*{way}"):
        fit_of(getattr(managers, name), built=True).check()


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "Sound", "AnyArguments", "ShownSignature", "AwaitedAndFinished", "KeepsASessionForReading", "AsksTheEngine",
        "Listens", "Buffers", "SettableFactory", "HandsItselfToACounter", "Remembers",
        "MayTakeASession", "InsertsByText", "FindsAnId", "AnswersTrue", "CallsAHelper", "HandsOnABlock",
        "NumbersBehindItsWrite", "ReturnsTheIdOfARow",
    ],
)  # fmt: skip
def test_a_sound_manager_is_accepted(name: str, built: bool) -> None:
    fit = fit_of(getattr(managers, name), built=built)
    fit.check()
    assert kinds(fit)["log_trade"] is Kind.DURABLE


@pytest.mark.parametrize(
    ("name", "why"), [("NamedSessionLocal", "self.SessionLocal is one"), ("DriverOnly", "self.pool .a psycopg2 conn")]
)
def test_an_object_without_a_session_factory_is_refused(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot be made durable: .*{why}"):
        DurableDatabaseManager(getattr(managers, name)())


@pytest.mark.parametrize("built", [False, True])
def test_manager_of_the_driver_is_not_told_to_declare(built: bool) -> None:
    """A declaration would be refused next: its writes need handlers."""
    [fault] = fit_of(managers.DriverOnlyWithOtherNames, built=built).faults
    assert "enqueue its writes as operations with handlers" in fault
    assert "declare them" not in fault


def test_class_without_a_trace_of_a_factory_is_warned_of() -> None:
    fit = fit_of(managers.TakesAnything)
    assert any("names session_factory, which its objects must have" in one for one in fit.warnings)
    assert not any("names session_factory" in one for one in fit_of(managers.Sound).warnings)


def test_every_reason_is_in_one_message() -> None:
    class Twice(managers.OtherArguments, managers.Static):
        pass

    with pytest.raises(ConfigError, match="log_trade: it is a staticmethod.*; update_balance: the declaration needs"):
        fit_of(Twice).check()


def test_each_public_method_is_given_its_kind() -> None:
    fit = fit_of(managers.Sound)
    assert kinds(fit) == {
        "cancel_order": Kind.PASSES,
        "close": Kind.PASSES,
        "get_session": Kind.PASSES,
        "get_trades": Kind.PASSES,
        "log_trade": Kind.DURABLE,
        "put_aside": Kind.PASSES,
        "record_fill": Kind.THROUGH,
        "set_logger": Kind.PASSES,
        "update_balance": Kind.DURABLE,
    }
    assert next(method.shown for method in fit.methods if method.name == "record_fill") == "durable through log_trade"
    assert fit.writes_that_pass == ("cancel_order", "put_aside")
    assert fit.summary == (
        "Sound: 2 methods durable, 1 durable through these, 6 pass; look like writes and pass: cancel_order, put_aside"
    )


def test_read_that_an_outage_does_not_answer_is_named() -> None:
    said = {method.name: method.reason for method in fit_of(managers.Sound).methods if "outage" in method.reason}
    assert said == {"get_trades": "a read that an outage does not answer, unless keep_last=True declares it"}
    kept = look(managers.Sound, (*TRADING_OPERATIONS, ManagerRead("get_trades", keep_last=True)))
    assert next(method.shown for method in kept.methods if method.name == "get_trades") == "last answer kept"
    assert not any("outage" in method.reason for method in kept.methods)


def test_the_paper_manager_fits_without_a_warning() -> None:
    fit = look(DatabaseManager, TRADING_OPERATIONS)
    fit.check()
    assert fit.warnings == ()
    assert fit.summary == "DatabaseManager: 18 methods durable, 6 read locally, 5 after drain, 3 pass"


class AnswersWithIds(managers.Sound):
    def by_annotation(self, symbol: str) -> int | None:
        return self.log_trade(symbol)

    def by_key(self, symbol: str) -> UUID:
        return UUID(int=self.log_trade(symbol))

    def by_row(self, symbol: str):  # type: ignore[no-untyped-def]
        with self.get_session() as session:
            row = managers.Trade(symbol=symbol)
            session.add(row)
            session.flush()
            key = row.id
        self.cache[symbol] = None
        return key

    def by_flag(self, symbol: str) -> bool:
        return self.log_trade(symbol) > 0

    def by_pair(self, symbol: str) -> tuple[str, bool]:
        return symbol, self.log_trade(symbol) > 0

    def by_dict(self, symbol: str) -> dict[str, Any]:
        return {"id": self.log_trade(symbol)}

    def by_list(self, symbol: str) -> list[int]:
        return [self.log_trade(symbol)]

    def by_object(self, symbol: str) -> Optional[Path]:  # noqa: UP045 - as older code has it
        return Path(f"{self.log_trade(symbol)}")

    def by_value(self, symbol: str):  # type: ignore[no-untyped-def]
        return f"{symbol}-{self.log_trade(symbol)}"

    def by_nothing(self, symbol: str):  # type: ignore[no-untyped-def]
        self.log_trade(symbol)
        return

    def by_none(self, symbol: str) -> None:
        self.log_trade(symbol)

    @managers.showing
    def by_nothing_behind_a_decorator(self, symbol: str):  # type: ignore[no-untyped-def]
        self.log_trade(symbol)

    @managers.showing
    def by_value_behind_a_decorator(self, symbol: str):  # type: ignore[no-untyped-def]
        return f"{symbol}-{self.log_trade(symbol)}"


@pytest.mark.parametrize(
    "name",
    ["by_annotation", "by_key", "by_row", "by_pair", "by_value", "by_value_behind_a_decorator", "by_dict",
     "by_list", "by_object"],
)  # fmt: skip
def test_answer_that_an_outage_cannot_tell_is_warned_of(name: str) -> None:
    def warned(operation: ManagerOperation) -> bool:
        return any(f"{name}: it answers" in one for one in fit_of(AnswersWithIds, operation).warnings)

    assert warned(ManagerOperation(name))
    assert warned(ManagerOperation(name, creates="trades")) == (name not in ("by_annotation", "by_key", "by_row"))
    assert not warned(ManagerOperation(name, returns=0))
    assert not warned(ManagerOperation(name, best_effort=True))


@pytest.mark.parametrize("name", ["by_nothing", "by_none", "by_nothing_behind_a_decorator"])
def test_no_answer_is_warned_of_where_an_outage_has_one(name: str) -> None:
    def warned(operation: ManagerOperation) -> bool:
        return any(one.startswith(name) for one in fit_of(AnswersWithIds, operation).warnings)

    assert not warned(ManagerOperation(name))
    assert warned(ManagerOperation(name, returns=True))


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["add_note", "save_trade"], 'ManagerOperation("save_trade", like="log_trade")'),
        (["add_note"], 'ManagerOperation("add_note")'),
        (["close_position"], 'ManagerOperation("close_position", like="close_position")'),
        (["open_session"], 'ManagerOperation("open_session", like="create_trading_session")'),
        (["save_trade_note", "close_trade"], 'ManagerOperation("save_trade_note")'),
    ],
)
def test_hint_names_a_like_only_where_the_name_fits(names: list[str], shown: str) -> None:
    assert declaration(names) == shown


class NamesOfItsOwn(managers.Sound):
    def get_cash(self, desk: int, symbol: str | None = None) -> int:
        return desk

    def get_active_positions(self, desk: int) -> list[int]:
        return [desk]


def test_declared_read_is_shown_as_read_locally() -> None:
    cash = ManagerRead("get_cash", like="get_current_balance", args={"desk": "session_id"})
    positions = ManagerRead("get_active_positions", args={"desk": "session_id"})
    fit = fit_of(NamesOfItsOwn, cash, positions)
    fit.check()
    assert {kinds(fit)[name] for name in (cash.name, positions.name)} == {Kind.READ_LOCALLY}
    assert "2 read locally" in fit.summary


@pytest.mark.parametrize(
    ("read", "why"),
    [
        (
            ManagerRead("get_cash", like="cash"),
            "like 'cash', which the local view cannot answer: .*get_current_balance",
        ),
        (ManagerRead("get_cash", args={"desk": "session_id"}), "like= is missing"),
        (ManagerRead("get_cash", like="get_current_balance"), 'args={"desk": "session_id"}'),
        (ManagerRead("get_cash", like="get_active_session_id"), "'desk' is not known .*leave like= out"),
        (
            ManagerRead("get_cash", like="get_current_balance", args={"desk": "session_id", "account": "symbol"}),
            "names 'account', which is no argument of it: its arguments are desk, symbol.*'symbol', which the local",
        ),
        (ManagerRead("cash_of", like="get_current_balance"), "'cash_of' names a method that NamesOfItsOwn lacks"),
    ],
)
def test_read_that_the_local_view_cannot_answer_is_refused(read: ManagerRead, why: str) -> None:
    with pytest.raises(ConfigError, match=f"NamesOfItsOwn cannot be made durable: .*{why}"):
        fit_of(NamesOfItsOwn, read).check()


def test_standard_read_of_other_arguments_is_warned_of() -> None:
    """Undeclared, so that it is served as before; an outage cannot answer it."""
    fit = fit_of(NamesOfItsOwn)
    fit.check()
    (warning,) = [one for one in fit.warnings if one.startswith("get_active_positions")]
    assert 'args={"desk": "session_id"}' in warning


def test_a_method_that_puts_aside_is_warned_of_by_its_attribute() -> None:
    warnings = fit_of(managers.Buffers).warnings
    assert any("log_trade: it puts into self._buffer" in warning for warning in warnings)
    for name in ("Sound", "Remembers", "HandsItselfToACounter"):
        assert not any("it puts into" in warning for warning in fit_of(getattr(managers, name), built=True).warnings)


BY_TEXT = "INSERT INTO trades (symbol) VALUES (:symbol) RETURNING id"


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        (BY_TEXT, None),
        ("INSERT INTO trades (id, symbol) VALUES (:id, :symbol)", "it inserts into trades by text with 'id'"),
        ("INSERT INTO trades (symbol) SELECT name FROM feeds", "from a SELECT"),
        ("INSERT INTO trades VALUES (1, 'A')", "without names of columns"),
        ("WITH a AS (SELECT 1) INSERT INTO trades AS t (symbol) SELECT name FROM feeds", "from a SELECT"),
        ("WITH a AS (INSERT INTO trades (symbol) VALUES ('A') RETURNING id) SELECT id FROM a", None),
        # A docstring, the start of a text that is put together, another table.
        ("Insert into trades and return the id.", None),
        ("INSERT INTO trades (", None),
        ("INSERT INTO trades (symbol)", None),
        ("INSERT INTO trades_history SELECT * FROM trades", None),
        ("SELECT nextval('trades_id_seq')", "it computes the id of trades itself"),
        ("SELECT coalesce(max(t.id), 0) + 1 FROM trades t", "it computes the id of trades itself"),
        ("SELECT nextval('fills_id_seq')", None),
        ("SELECT nextval('trades_history_id_seq')", None),
        ("SELECT max(id) + 1 FROM batches", None),
        ("SELECT max(price) + 1 FROM trades", None),
    ],
)
def test_a_row_that_numbers_itself_is_warned_of(
    statement: str, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = facts_of(managers.InsertsByText.log_trade)
    assert BY_TEXT in facts.texts
    monkeypatch.setattr(facts, "texts", [statement])
    warnings = [one for one in fit_of(managers.InsertsByText).warnings if one.startswith("log_trade:")]
    assert len(warnings) == (why is not None)
    assert all(why is not None and why in one and "cannot get the id" in one for one in warnings)


def test_a_unit_of_work_that_is_handed_out_is_warned_of() -> None:
    warnings = [one for one in fit_of(managers.HandsOutUnits).warnings if "that it hands out" in one]
    assert warnings == [
        f"{name}: what is written by the {unit} that it hands out is not durable: {beyond_call.UNITS_WAY}"
        for name, unit in (("transaction", "Unit"), ("works", "Works"))
    ]


def test_a_unit_of_work_with_the_factory_is_warned_of() -> None:
    fit = fit_of(managers.HandsOutItsFactory)
    assert [one.partition(":")[0] for one in fit.warnings if "hands out" in one] == ["transaction", "unit_of_work"]
    assert not any(one.startswith("open_trades") for one in fit.warnings)
    asked = {method.name: method.reason for method in fit.methods}
    assert (asked["unit_of_work"], asked["transaction"]) == ("", "")


def test_a_declared_unit_of_work_is_refused() -> None:
    """Its caller would write in the session of a copy, which is gone."""
    declared = [
        ManagerOperation("unit_of_work"),
        ManagerOperation("transaction", context=True),
        ManagerOperation("close_all"),
    ]
    fit = fit_of(managers.HandsOutItsFactory, *declared)
    refused = {one.name: one.reason for one in fit.methods if one.kind is Kind.REFUSED}
    assert refused.keys() == {"unit_of_work", "transaction"}
    assert all("hands out a UnitOfWork" in why and beyond_call.UNITS_WAY in why for why in refused.values())


def test_names_that_calls_by_position_lack_are_warned_of() -> None:
    warnings = fit_of(managers.AnyArguments).warnings
    assert any("it takes *args, so new_balance given by position" in one for one in warnings)
    assert not any("by position" in one for one in fit_of(managers.Sound).warnings)


def test_labels_behind_a_star_raise_no_warning() -> None:
    """What is behind the star of a method without **kwargs is nothing that its declaration names."""

    class Labelling(managers.Sound):
        def log_position(self, symbol: str, side: str, *labels: str) -> int:
            with self.session_factory.begin() as session:
                session.add(row := managers.Trade(symbol=symbol))
                session.flush()
                return row.id

    fit = look(Labelling, [one for one in TRADING_OPERATIONS if one.name == "log_position"])
    assert [one for one in fit.warnings if "by position" in one] == []


def test_an_answer_that_is_no_id_is_warned_of() -> None:
    assert any("log_trade: it answers dict" in warning for warning in fit_of(managers.AnswersARow).warnings)
    assert not any("it answers" in warning for warning in fit_of(managers.Sound).warnings)


def test_an_only_answer_to_applied_calls_raises_no_warning() -> None:
    assert not any("it answers" in warning for warning in fit_of(managers.AnswersTrue).warnings)
    fit = fit_of(AnswersWithIds, ManagerOperation("by_flag"))
    assert not any("it answers" in warning for warning in fit.warnings)
    told_otherwise = ManagerOperation("by_flag", success=lambda result, wrote: True)
    assert any("by_flag: it answers bool" in one for one in fit_of(AnswersWithIds, told_otherwise).warnings)


def test_a_connection_in_an_exception_handler_is_warned_of() -> None:
    warnings = fit_of(managers.AsksTheEngine).warnings
    assert any("self.engine.connect()" in warning for warning in warnings)


def test_a_component_of_another_database_is_warned_of() -> None:
    class Elsewhere(managers.Repositories):
        def __init__(self) -> None:
            super().__init__()
            factory = sessionmaker(bind=create_engine(managers.URL + "2"))
            self.repositories = {"trades": managers.Repository(factory)}

    fit = look(Elsewhere, TRADING_OPERATIONS, manager=Elsewhere())
    fit.check()
    assert any("of another database" in warning for warning in fit.warnings)


def test_source_that_is_missing_refuses_nothing() -> None:
    names: dict[str, Any] = {"Sound": managers.Sound}
    code = "class Typed(Sound):\n  def log_trade(self, symbol):\n    with self.engine.begin() as c: c.execute('x')\n"
    exec(code, names)  # noqa: S102 - as a REPL does
    fit = fit_of(names["Typed"])
    fit.check()
    assert next(method for method in fit.methods if method.name == "log_trade").reason.endswith(
        "not read: its source is not available"
    )


def test_a_held_session_is_warned_of_where_source_is_missing() -> None:
    names: dict[str, Any] = {"Keeps": managers.KeepsASession}
    code = "class Typed(Keeps):\n  def log_trade(self, symbol):\n    self.session.add(symbol)\n"
    exec(code, names)  # noqa: S102 - as a REPL does
    fit = fit_of(names["Typed"], built=True)
    fit.check()
    assert any("it uses self.session, which is an open Session" in warning for warning in fit.warnings)


def test_a_call_of_a_durable_method_is_found_without_source() -> None:
    names: dict[str, Any] = {"Sound": managers.Sound}
    exec("class Typed(Sound):\n  def take(self, symbol):\n    return self.log_trade(symbol)\n", names)  # noqa: S102
    assert kinds(fit_of(names["Typed"]))["take"] is Kind.THROUGH


def test_a_partial_as_a_method_is_looked_through() -> None:
    class Partial(managers.Sound):
        log_trade = functools.partialmethod(managers.Generates.log_trade)  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="generator"):
        fit_of(Partial).check()


def test_a_method_that_dispatches_by_type_is_refused() -> None:
    class Dispatching(managers.Sound):
        log_trade = functools.singledispatchmethod(managers.Sound.log_trade)

    with pytest.raises(ConfigError, match="log_trade: it is a singledispatchmethod.*declare a method that calls it"):
        fit_of(Dispatching).check()


def test_a_method_that_was_replaced_on_the_object_is_refused() -> None:
    manager = managers.Sound()
    manager.log_trade = functools.partial(manager.log_trade)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="log_trade: it was set on the object"):
        look(managers.Sound, TRADING_OPERATIONS, manager=manager).check()


def test_a_method_that_only_the_object_has_is_refused() -> None:
    manager = managers.Sound()
    manager.log_position = manager.log_trade  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="log_position: it was set on the object"):
        look(managers.Sound, TRADING_OPERATIONS, manager=manager).check()


def test_a_method_whose_arguments_are_hidden_in_c_is_refused() -> None:
    class Compiled(managers.Sound):
        log_trade = dict.pop  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="log_trade: Python cannot inspect its arguments"):
        fit_of(Compiled).check()


def test_ids_need_an_engine_of_the_managers_sessions() -> None:
    manager = managers.Sound()
    del manager.engine
    look(managers.Sound, TRADING_OPERATIONS, manager=manager).check()
    manager.session_factory = sessionmaker()
    with pytest.raises(ConfigError, match="its sessions have no engine"):
        look(managers.Sound, TRADING_OPERATIONS, manager=manager).check()
    look(managers.Sound, [ManagerOperation("update_balance")], manager=manager).check()


def test_a_key_that_is_text_is_refused_by_the_mapped_tables() -> None:
    operation = ManagerOperation("log_code", creates="coded.code")
    with pytest.raises(ConfigError, match="the key coded.code is neither an integer with a sequence nor a UUID"):
        fit_of(managers.CreatesByCode, operation).check()


@pytest.mark.parametrize(
    ("operation", "why"),
    [
        (ManagerOperation("no_such_method"), "'no_such_method' names a method that Sound lacks"),
        (ManagerOperation("cancel_order", identity="nothing"), "needs 'nothing'"),
        (ManagerOperation("cancel_order", identity=(("order_id",), ("nothing",))), "needs 'nothing'"),
        (ManagerOperation("cancel_order", order_by="nothing"), "needs 'nothing'"),
    ],
)
def test_a_declaration_that_names_nothing_is_refused(operation: ManagerOperation, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        fit_of(managers.Sound, operation).check()


def test_whatever_a_declaration_names_may_be_an_extra_argument() -> None:
    look(managers.AnyArguments, [ManagerOperation("update_balance", identity="nothing", order_by="no")]).check()


def test_unseen_part_of_a_manager_is_logged_as_a_sentence(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    fit = Fit("Books", (MethodFit("save", Kind.PASSES, warning="it looks like a write"),), unseen=("its source",))
    with Outbox.open(tmp_path / "outbox") as box:
        caplog.clear()  # of what the opening says where the folder is in memory
        _show(fit, box)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "Books.save: it looks like a write",
        "Books: its source",
    ]


def test_comparison_that_the_call_does_not_show_is_named() -> None:
    reasons = {method.name: method.reason for method in fit_of(managers.DecidesByAmounts).methods}
    assert reasons["log_trade"].endswith("an outage takes the branch that was seen: amount > len(self.cache)")
    assert "an outage" not in reasons["log_event"]


def test_check_that_only_refuses_decides_nothing() -> None:
    assert not [method.name for method in fit_of(DatabaseManager).methods if "branch that was seen" in method.reason]
