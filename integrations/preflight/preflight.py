"""Preflight: decides method by method whether a manager fits, before wiring, and calls none of its methods.

What cannot be served is refused here, with the way out, and not in an outage.  What reads source may be wrong: it
refuses what is certain and warns of the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ... import Operation, Outbox, OutboxError
from ...errors import ConfigError
from ...log import Log
from ...records import attributes
from .. import roles
from ..code.answers import given_id_of
from ..code.method_code import facts_of
from ..code.signatures import signature_of
from ..manager.host import Host
from ..manager.manager_connection import engine_held
from ..operations import AFTER_DRAIN, ManagerOperation
from ..view import branches
from ..view.kept_answers import ManagerRead
from ..view.reads import LOCAL_READS, Reads, refusals
from . import beyond_call, misfits, setters, ways_around, whole
from .evidence import Evidence
from .records import with_records

_log = Log("outbox.integrations")

_NOTICE = "manager"
_UNANSWERED = "a read that an outage does not answer, unless keep_last=True declares it"
# By how methods that write are called.
_WRITES = (
    "log_", "save_", "insert_", "update_", "create_", "add_", "delete_", "remove_", "set_", "record_", "cancel_",
    "close_", "upsert_", "store_", "mark_", "put_", "write_", "end_", "start_", "open_", "apply_", "submit_",
    "register_", "archive_", "purge_", "expire_", "append_", "modify_", "change_", "finish_", "fill_", "reset_",
)  # fmt: skip
_QUERIES = frozenset({"select", "query", "scalars"})
# Methods of the manager that set up or end itself.
_OWN_LIFE = frozenset(
    {
        *("close", "dispose", "shutdown", "connect", "get_session", "create_all", "create_tables", "create_schema"),
        *("create_db", "create_database", "init_db", "init_database", "drop_all", "drop_tables"),
    }
)


class Kind(StrEnum):
    """What becomes of a method's calls."""

    DURABLE = "durable"
    THROUGH = "durable through"
    READ_LOCALLY = "read locally"
    KEPT = "last answer kept"
    AFTER_DRAIN = "after drain"
    PASSES = "passes"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class MethodFit:
    """One method: what becomes of its calls, why, and what a person should look at."""

    name: str
    kind: Kind
    reason: str = ""
    warning: str = ""

    @property
    def shown(self) -> str:
        """The kind for people; with the durable methods through which this one goes."""
        return f"{self.kind} {self.reason}" if self.kind is Kind.THROUGH else str(self.kind)


@dataclass(frozen=True, slots=True)
class Fit:
    """How a manager fits."""

    manager: str
    methods: tuple[MethodFit, ...]
    # What is wrong with the manager as a whole, each with the way out.
    faults: tuple[str, ...] = ()
    # What could not be looked at.
    unseen: tuple[str, ...] = ()

    @property
    def refused(self) -> tuple[MethodFit, ...]:
        """The declared methods that cannot be served."""
        return tuple(method for method in self.methods if method.kind is Kind.REFUSED)

    @property
    def writes_that_pass(self) -> tuple[str, ...]:
        """Undeclared methods that look like writes."""
        return tuple(one.name for one in self.methods if one.kind is Kind.PASSES and one.warning)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should look at."""
        found = [f"{one.name}: {one.warning}" for one in self.methods if one.warning]
        return (*found, *self.unseen)

    @property
    def fits(self) -> bool:
        """Whether the manager can be wired."""
        return not self.faults and not self.refused

    @property
    def summary(self) -> str:
        """All of it in one line."""
        words = {Kind.DURABLE: "durable", Kind.THROUGH: "durable through these", Kind.READ_LOCALLY: "read locally",
                 Kind.KEPT: "with their last answer",
                 Kind.AFTER_DRAIN: "after drain", Kind.PASSES: "pass", Kind.REFUSED: "refused"}  # fmt: skip
        counts = {kind: sum(method.kind is kind for method in self.methods) for kind in Kind}
        always = {Kind.DURABLE, Kind.PASSES}
        parts = [f"{counts[kind]} {word}" for kind, word in words.items() if counts[kind] or kind in always]
        passing = self.writes_that_pass
        noun = "method" if counts[Kind.DURABLE] == 1 else "methods"
        line = f"{self.manager}: {counts[Kind.DURABLE]} {noun} {', '.join(parts).partition(' ')[2]}"
        return f"{line}; look like writes and pass: {', '.join(passing)}" if passing else line

    def check(self) -> None:
        """Raise `ConfigError` with every reason, where something cannot be served."""
        reasons = [*self.faults, *(f"{method.name}: {method.reason}" for method in self.refused)]
        if reasons:
            raise ConfigError(
                f"{self.manager} cannot be made durable: " + "; ".join(reasons),
                hint="`atb outbox check MODULE:CLASS` shows every method",
            )


Declared = Operation | ManagerRead


def look(manager_class: type, declarations: Iterable[Declared], *, manager: Any = None, engine: Any = None) -> Fit:
    """Decide for each public method of a manager what becomes of its calls; calls none of them.

    `manager` is an object of the class, where there is one; `engine` leads to its database, of which only the catalog
    is looked at.
    """
    given = tuple(declarations)
    operations = with_records((one for one in given if isinstance(one, ManagerOperation)), manager_class)
    declared = {one.name: one for one in operations}
    reads = {one.name: one for one in given if isinstance(one, ManagerRead)}
    matching = {name: one for name, one in declared.items() if callable(getattr(manager_class, name, None))}
    evidence = Evidence(manager_class, manager)
    unseen: list[str] = []
    without = whole.lacking(evidence)
    faults = [*_missing(manager_class, declared, reads), *whole.unusable(evidence, matching)]
    # Where nothing can be declared, that is no advice.
    faults += [without] if without is not None else _undeclared(evidence, declared, matching)
    columns = whole.columns_refused(evidence, matching, None if faults else engine, unseen)
    public = {name for name in dir(manager_class) if not name.startswith("_")} - {"session_factory"}
    names = {name for name in public if _is_method(manager_class, name)}
    others = frozenset(matching)
    unfit = refusals(reads.values())
    table = Reads(one for one in reads.values() if one.name not in unfit)
    kept = {one.name for one in reads.values() if one.keep_last}
    answered = frozenset({*kept, *matching, *(name for name in names if table.local(name) is not None)})
    own = frozenset(attributes(manager) if manager is not None else ()) & (declared.keys() - names)
    methods = [
        _declared(matching[name], evidence, columns)
        if name in matching
        else _read(name, evidence, table, unfit) or _other(name, evidence, others, answered)
        for name in sorted(names | matching.keys())
    ]
    if manager is None and without is None and not whole.is_named(evidence):
        unseen.append(
            "no code of it that can be read names session_factory, which its objects must have: "
            "pass an object of the module, or see docs/how-to/plain-sql.md where it has none"
        )
    methods += [MethodFit(name, Kind.PASSES, "", setters.WARNING) for name in setters.that_write(evidence, others)]
    # Such a method would be called on the object itself, and not on the copy of it that replays.
    methods += [MethodFit(name, Kind.REFUSED, misfits.OF_THE_OBJECT) for name in sorted(own)]
    if not any(facts_of(one).read for _, one in evidence.code.everything()):
        unseen.append("the source of its methods cannot be read, so only their names and arguments were checked")
    return Fit(manager_class.__name__, tuple(methods), tuple(faults), tuple(unseen))


def examine(host: Host, operations: Iterable[Declared], outbox: Outbox) -> None:
    """Refuse a manager that does not fit, and let log and status show how it does.

    Before a manager is built its class is looked at, and the manager itself when it is there.  Where not even the class
    is known, the store must remember its methods.  Raises `ConfigError`.
    """
    declared = tuple(operations)
    if host.manager_class is None:
        named = [one.name for one in declared if isinstance(one, ManagerOperation)]
        if named and not any(host.has(name) for name in named):
            raise ConfigError(
                "the manager's class is unknown: it cannot be built now, and its factory hides the class",
                hint="pass the class (DurableDatabaseManager.of(Manager)), or start once with PostgreSQL up",
            )
        host.when_built(lambda manager: _look_late(manager, declared, outbox))
        return
    manager = host.built
    fit = look(host.manager_class, declared, manager=manager, engine=engine_held(manager))
    fit.check()
    if manager is None:
        host.when_built(lambda built: _look_late(built, declared, outbox))
    _show(fit, outbox)


def _look_late(manager: Any, operations: tuple[Declared, ...], outbox: Outbox) -> None:
    """Report what does not fit of a manager that was built after wiring."""
    fit = look(type(manager), operations, manager=manager, engine=engine_held(manager))
    try:
        fit.check()
    except ConfigError as exc:
        _log.critical("the manager does not fit: %(error)s", error=exc)
        _notice(outbox, exc.message, degraded=True)
        return
    _show(fit, outbox)


def _show(fit: Fit, outbox: Outbox) -> None:
    _log.info("manager checked: %(summary)s", summary=fit.summary)
    for method in fit.methods:
        if method.warning:
            _log.warning("%(manager)s.%(method)s: %(warning)s", manager=fit.manager, method=method.name,
                         warning=method.warning)  # fmt: skip
    for unseen in fit.unseen:
        _log.warning("%(manager)s: %(unseen)s", manager=fit.manager, unseen=unseen)
    _notice(outbox, fit.summary)


def _notice(outbox: Outbox, message: str, *, degraded: bool = False) -> None:
    try:
        outbox.notices.put(_NOTICE, message, degraded=degraded)
    except OutboxError as exc:
        # A full disk must not keep an engine from closing its positions.
        _log.warning("status does not show how the manager fits: %(error)s", error=exc)


# -- the manager as a whole


def _missing(
    manager_class: type, declared: dict[str, ManagerOperation], reads: dict[str, ManagerRead]
) -> Iterator[str]:
    named = [("read", name) for name in reads]
    named += [("operation", name) for name, operation in declared.items() if not operation.optional]
    way = "check the declaration's name"
    way += ", or define it: what __getattr__ finds is not seen" if hasattr(manager_class, "__getattr__") else ""
    for what, name in named:
        if not callable(getattr(manager_class, name, None)):
            yield f"{what} {name!r} names a method that {manager_class.__name__} lacks: {way}"


def _undeclared(
    evidence: Evidence, declared: dict[str, ManagerOperation], matching: dict[str, ManagerOperation]
) -> Iterator[str]:
    manager_class = evidence.cls
    if declared and not matching:
        public = [name for name in dir(manager_class) if not name.startswith("_") and _is_method(manager_class, name)]
        own = [name for name in public if _other(name, evidence, frozenset(), frozenset()).warning]
        shown = f"; it has {', '.join(own[:12])}" if own else ""
        yield (
            "none of its methods is declared, so nothing would be durable"
            f"{shown}: declare them, as in {roles.declaration(own or ['save_trade'])}"
        )


# -- one method


def _is_method(manager_class: type, name: str) -> bool:
    member = inspect.getattr_static(manager_class, name, None)
    return not isinstance(member, type) and callable(getattr(member, "__func__", member))


def _declared(operation: ManagerOperation, evidence: Evidence, columns: dict[tuple[str, str], str]) -> MethodFit:
    name = operation.name
    reasons, unnamed = list(misfits.shape(operation, evidence)), None
    if not reasons:
        try:
            signature = signature_of(evidence.cls, name)
            reasons += misfits.arguments(operation, evidence, signature)
            unnamed = misfits.nameless(operation, signature)
        except (TypeError, ValueError):
            reasons.append("Python cannot inspect its arguments: wrap it in a method")
        reasons += misfits.unstorable(operation, evidence)
    column = misfits.column_of(operation) if operation.creates else None
    reasons += [columns[column]] if column in columns else []
    refused, warnings = ways_around.find(operation, evidence)
    reasons += refused
    reasons += ways_around.counting(operation, evidence)
    reasons += beyond_call.left_to_threads(operation, evidence)
    given = given_id_of(evidence.cls, name) if column is not None else None
    own_id = misfits.makes_its_id(operation, evidence) if column is not None and given is None else None
    warnings += [own_id] if own_id is not None else []
    unit = beyond_call.handed_out(name, evidence)
    reasons += (
        [] if unit is None else [f"it hands out a {unit}, by which its caller would write: {beyond_call.UNITS_WAY}"]
    )
    made = misfits.returned_object(operation, evidence)
    if made is not None:
        text = f"it returns a {made}, and an outage can only return an id: return the id, or leave it out"
        (warnings if operation.best_effort else reasons).append(text)
    more = (
        misfits.other_answer(operation, evidence),
        ways_around.buffers(operation, evidence),
        None if operation.best_effort else beyond_call.switch_warning(operation.name, evidence),
        beyond_call.global_warning(operation.name, evidence),
        unnamed,
    )
    warnings += [one for one in more if one is not None]
    if reasons:
        return MethodFit(name, Kind.REFUSED, "; ".join(reasons), "; ".join(warnings))
    notes = ["best effort"] if operation.best_effort else []
    if column is not None:
        notes.append(f"ids of {'.'.join(column)}" + (f", given by {'.'.join(given)}" if given is not None else ""))
    decides = branches.of(operation, evidence.cls).note
    notes += [] if decides is None else [decides]
    notes += [] if evidence.code.is_read(name) else ["not read: its source is not available"]
    return MethodFit(name, Kind.DURABLE, ", ".join(notes), "; ".join(warnings))


def _read(name: str, evidence: Evidence, table: Reads, unfit: Mapping[str, str]) -> MethodFit | None:
    """How a read fits; None for a method that is none, as far as is declared."""
    if name in unfit:
        return MethodFit(name, Kind.REFUSED, unfit[name])
    local, declared = table.local(name), table.declared.get(name)
    if local is not None:
        return _local(local, evidence, is_declared=declared is not None)
    if declared is not None:
        kind = Kind.KEPT if declared.keep_last else Kind.PASSES
        notes = ["reads stale"] if declared.reads_stale else []
        notes += [] if declared.keep_last else [_UNANSWERED]
        return MethodFit(name, kind, ", ".join(notes))
    if name in LOCAL_READS:
        return MethodFit(name, Kind.PASSES, f"{table.name(name)} is declared in its place")
    return None


def _local(read: ManagerRead, evidence: Evidence, *, is_declared: bool) -> MethodFit:
    try:
        reasons = list(misfits.read_arguments(read, signature_of(evidence.cls, read.name)))
    except (TypeError, ValueError):
        reasons = ["Python cannot inspect its arguments: wrap it in a method"]
    if reasons and is_declared:
        return MethodFit(read.name, Kind.REFUSED, "; ".join(reasons))
    note = f"as {read.standard}" if read.like is not None else ""
    return MethodFit(read.name, Kind.READ_LOCALLY, note, "; ".join(reasons))


def _other(name: str, evidence: Evidence, declared: frozenset[str], answered: frozenset[str]) -> MethodFit:
    if name in AFTER_DRAIN:
        return MethodFit(name, Kind.AFTER_DRAIN)
    through = sorted(declared & evidence.code.uses_of(name, but=declared).keys())
    own = name not in _OWN_LIFE and ways_around.writes(name, evidence, but=declared)
    if through and not own:
        return MethodFit(name, Kind.THROUGH, ", ".join(through))
    looks = own or (name.startswith(_WRITES) and _may_write(name, evidence) and not _is_query(name, evidence))
    notes = [f"calls {', '.join(through)}"] if through else []
    notes += [] if evidence.code.is_read(name) else ["not read"]
    unit = beyond_call.handed_out(name, evidence)
    is_own = unit is not None or name in _OWN_LIFE or misfits.opens_a_scope(name, evidence)
    if not looks and not is_own and evidence.turns_to_the_database(name, but=answered):
        notes.append(_UNANSWERED)
    warning = "it looks like a write, and is not durable" if looks and name not in _OWN_LIFE else ""
    if unit is not None:
        warning = f"what is written by the {unit} that it hands out is not durable: {beyond_call.UNITS_WAY}"
    return MethodFit(name, Kind.PASSES, ", ".join(notes), warning)


def _is_query(name: str, evidence: Evidence) -> bool:
    """Whether a method that lists what is open, not one that opens something, begins a query."""
    functions = evidence.code.functions(name) if name.startswith("open_") else []
    return any(call.last in _QUERIES for function in functions for call in facts_of(function).calls)


def _may_write(name: str, evidence: Evidence) -> bool:
    """Whether a method that is named as a write may be one."""
    if not evidence.code.is_read(name) or evidence.turns_to_the_database(name):
        return True
    return ways_around.hands_itself_over(name, evidence)
