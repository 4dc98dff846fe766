"""Misfits: why a declared method of a manager cannot be made durable, from its class, source and attributes.

Each function gives reasons, with the way out.  What is certain is a refusal; what may be meant otherwise is a warning.
"""

import ast
import functools
import inspect
import re
import typing
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from types import CodeType, FunctionType, MethodType, UnionType
from typing import Any, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from ...records import attributes, has_fields, is_own_class
from ...registered import can_be_registered
from ..code.answers import answering, applied_answer, plain_answer, shown
from ..code.members import is_mapped_class
from ..code.method_code import Facts, dotted, facts_of, is_opaque, layers, meaning, names_in
from ..code.signatures import hints_of, signature_of
from ..manager.held import ASYNC_WAY
from ..operations import TRADING_OPERATIONS, ManagerOperation
from ..sql_text import statements
from ..view.kept_answers import ManagerRead
from ..view.reads import LOCAL_READS
from .evidence import Evidence

# What a synchronous wrapper calls to get the result of the coroutine or generator that it wraps.
_RUNNERS = frozenset({"run", "run_until_complete", "run_coroutine_threadsafe", "list", "tuple", "next", "sum", "send"})
# How a query is begun, and how one object of it is taken.
_CHOOSING = frozenset({"select", "query", "get", "get_one"})
_FINDING = frozenset({"get", "get_one", "first", "one", "one_or_none", "scalar", "scalar_one", "scalar_one_or_none"})
# How types of ids are written, and types of answers that are no ids.
_IDS = re.compile(r"(?:typing\.)?(?:Optional\[)?(?:uuid\.)?(?:int|UUID)\]?(?: *\| *None)?")
_NO_BLOCKS = frozenset({"None", "bool", "int", "float", "Decimal", "str", "UUID", "dict", "list", "tuple"})
_OF_DATA = frozenset({"numpy", "pandas"})
_ARRAYS = frozenset({"ndarray", "DataFrame", "Series", "Index"})
_NOTHING = frozenset({"None", "NoReturn", "Never"})
# Parameters that take what no other takes.
_ANY = frozenset({inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD})
_GIVEN_BY_THE_TABLE = (
    "the row cannot get the id that an outage returned. Let the column's default number it, or leave out creates="
)
OF_THE_OBJECT = (
    "it was set on the object, and a replay, which runs on a copy, would call it on that object: "
    "define it in the class, or replace it after wiring"
)


def shape(operation: ManagerOperation, evidence: Evidence) -> Iterator[str]:
    """Reasons in what kind of method it is."""
    member = evidence.member(operation.name)
    if isinstance(member, staticmethod | classmethod):
        yield f"it is a {type(member).__name__}, which has no sessions: make it a method, or leave it out"
        return
    if isinstance(member, functools.singledispatchmethod):
        yield "it is a singledispatchmethod, and a replay passes arguments by name: declare a method that calls it"
        return
    chain = layers(member)
    outer = _RUNNERS & names_in(chain[0]) if len(chain) > 1 else frozenset()
    if not outer and any(inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) for one in chain):
        yield f"it is asynchronous: {ASYNC_WAY}"
    is_block = any(one.__globals__.get("__name__") == "contextlib" for one in chain)
    if operation.context and _opens_no_block(chain):
        yield (
            "it is no context manager, and it is declared as one (context=True, or by like=), so a call without `with` "
            "would write nothing: declare its role itself, by balance=Balance.CHANGE and amount="
        )
    if not outer and any(inspect.isgeneratorfunction(one) for one in chain):
        if not is_block:
            yield "it is a generator, which runs after the call has returned: return a list, or leave it out"
        elif not operation.context:
            yield "it is a context manager: declare it with context=True where it changes a balance, or leave it out"
    own = attributes(evidence.manager).get(operation.name) if evidence.manager is not None else None
    if isinstance(own, FunctionType | MethodType | functools.partial):
        yield OF_THE_OBJECT


def opens_a_scope(name: str, evidence: Evidence) -> bool:
    """Whether a method is a context manager that needs no arguments, such as one that yields a session."""
    chain = layers(evidence.member(name))
    own = [one for one in chain if one.__globals__.get("__name__") != "contextlib"]
    needed = [sum(map(_is_needed, inspect.signature(one).parameters.values())) for one in own]
    return len(own) < len(chain) and needed == [1] * len(own)


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in _ANY


def _opens_no_block(chain: list[Any]) -> bool:
    """Whether a method certainly answers with something that `with` cannot enter; a decorator may change an answer."""
    if len(chain) != 1 or inspect.isgeneratorfunction(chain[0]):
        return False
    facts, hint = facts_of(chain[0]), inspect.signature(chain[0]).return_annotation
    name = hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))
    return name in _NO_BLOCKS or (facts.read and all(isinstance(one, ast.Constant) for one in facts.returns))


def arguments(operation: ManagerOperation, evidence: Evidence, signature: inspect.Signature) -> Iterator[str]:
    """Reasons in its arguments: names that the declaration needs and the method lacks."""
    given = set(signature.parameters)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    renamed = operation.args
    shown = f"its arguments are {', '.join(signature.parameters) or 'none'}"
    named = [*dict.fromkeys([*needed_names(operation), *_identity(operation)])]
    opaque = [one for one in layers(evidence.member(operation.name)) if is_opaque(one)]
    if opaque and named:
        yield (
            f"a decorator hides its signature, and the declaration needs {', '.join(named)}: "
            "put functools.wraps(function) on the decorator's wrapper"
        )
        return
    records = cast(Mapping[str, Collection[str]], operation.records)
    for what, names in {"records": records, "sets_id": operation.sets_id}.items():
        for name in names:
            if name not in given and inspect.Parameter.VAR_KEYWORD not in kinds:
                yield f"{what}= names {name!r}, which is no argument of it: {shown}"
    if inspect.Parameter.VAR_KEYWORD in kinds or not all(records.values()):
        return
    given |= {item for items in records.values() for item in items}
    inherited = _inherited(operation)
    for name, standard_name in renamed.items():
        if name not in given and standard_name not in given and name not in inherited:
            yield f"the declaration's args= names {name!r}, which is no argument of it: {shown}"
    standard = {renamed.get(name, name) for name in given} | given
    required = list(needed_names(operation))
    required += [] if operation.optional or operation.like else _identity(operation)
    required += [operation.order_by] if isinstance(operation.order_by, str) else []
    for name in dict.fromkeys(required):
        if name not in standard:
            yield (
                f"the declaration needs {name!r}, which is no argument of it ({shown}): "
                f'declare ManagerOperation("{operation.name}", args={{"ITS NAME": "{name}"}}, ...), or leave it out'
            )


def nameless(operation: ManagerOperation, signature: inspect.Signature) -> str | None:
    """A warning where callers may give by position, without a name, what the declaration names."""
    given = signature.parameters
    rest = next((name for name, one in given.items() if one.kind is one.VAR_POSITIONAL), None)
    declared = [*needed_names(operation), *_identity(operation), *operation.args.values()]
    names = dict.fromkeys(operation.own_name(name) for name in declared)
    missing = [name for name in names if name not in given and operation.standard_name(name) not in given]
    # Without **kwargs it takes nothing by a name that it lacks: what is behind the star is something else.
    takes_any = any(one.kind is one.VAR_KEYWORD for one in given.values())
    if rest is None or not takes_any or not missing:
        return None
    return f"it takes *{rest}, so {', '.join(missing)} given by position have no name: name them in its signature"


def read_arguments(read: ManagerRead, signature: inspect.Signature) -> Iterator[str]:
    """Reasons in the arguments of a read: names that it lacks, and those that the local view does not know."""
    takes, given = LOCAL_READS[read.standard].takes, signature.parameters
    kinds = {parameter.kind for parameter in given.values()}
    shown = f"{read.standard} takes {', '.join(takes) or 'none'}"
    for name, standard in read.args.items():
        if name not in given and inspect.Parameter.VAR_KEYWORD not in kinds:
            yield f"args= names {name!r}, which is no argument of it: its arguments are {', '.join(given) or 'none'}"
        if standard not in takes:
            yield f"args= gives {name!r} the standard name {standard!r}, which the local view does not know: {shown}"
    for name, parameter in given.items():
        is_needed = parameter.default is parameter.empty and parameter.kind not in _ANY
        if is_needed and name not in read.args and name not in takes:
            way = f'declare it with args={{"{name}": "{takes[0]}"}}' if takes else "leave like= out"
            yield f"its argument {name!r} is not known to the local view ({shown}): {way}"


def unstorable(operation: ManagerOperation, evidence: Evidence) -> Iterator[str]:
    """Reasons in the types of its arguments: objects that no entry can hold."""
    for function in evidence.code.functions(operation.name):
        hints = hints_of(function)
        if not hints:
            continue
        given = signature_of(evidence.cls, operation.name).parameters.values()
        for parameter in (one for one in given if one.default is one.empty):
            hint: Any = hints.get(parameter.name)
            found = _unstorable_in(hint)
            if found is not None:
                holds = "is" if found is hint else "holds"
                yield (
                    f"its argument {parameter.name!r} {holds} a {found.__name__}, which cannot be stored: "
                    "pass its values, or leave it out"
                )
        return


def _unstorable_in(hint: Any, holders: tuple[Any, ...] = ()) -> Any:
    """The class, in an annotation, of values that no entry can hold; None where there are others to choose from."""
    inside = typing.get_args(hint)
    if has_fields(hint) and hint not in holders:
        inside, holders = (*hints_of(hint).values(),), (*holders, hint)
    made_of = typing.get_origin(hint)
    if not inside or _is_array(made_of):
        return made_of or hint if _is_unstorable(made_of or hint) else None
    found = [_unstorable_in(one, holders) for one in inside if one is not type(None)]
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return found[0] if found and None not in found else None
    return next((one for one in found if one is not None), None)


def _is_unstorable(hint: Any) -> bool:
    if not isinstance(hint, type) or issubclass(hint, Enum):
        return False
    if is_mapped_class(hint) or issubclass(hint, Session | Connection | Engine):
        return True
    # Scalars of numpy and pandas become Python's; what is only a protocol or abstract may be anything.
    of_data = hint.__module__.partition(".")[0] in _OF_DATA
    return _is_array(hint) or (
        is_own_class(hint) and not (can_be_registered(hint) or of_data or inspect.isabstract(hint))
    )


def _is_array(kind: Any) -> bool:
    return str(getattr(kind, "__module__", "")).partition(".")[0] in _OF_DATA and kind.__name__ in _ARRAYS


def makes_its_id(operation: ManagerOperation, evidence: Evidence) -> str | None:
    """A warning where the row of which the id is returned cannot get the id that an outage returned."""
    table, column = column_of(operation)
    name = table.rpartition(".")[2]
    path = rf'"?(?:\w+"?\."?)?{re.escape(name)}"?'
    into = rf"\bINSERT\s+INTO\s+{path}(?:\s+AS\s+\w+)?(?:\s*\(([^)]*)\))?\s*(VALUES|SELECT)\b"
    insert = re.compile(rf"\s*(?:WITH\b.*?)?{into}", re.IGNORECASE | re.DOTALL)
    highest = rf"\bmax\s*\(\s*(?:\w+\.)?{re.escape(column)}\s*\)\s*(?:,\s*0\s*\))?\s*\+.*\bFROM\s+{path}(?!\w)"
    # By the name of a sequence: the method may take numbers of another table's, too.
    sequence = rf"\bnextval\s*\(\s*'{path}_(?:{re.escape(column)}_)?seq\b"
    computed = re.compile(rf"{sequence}|{highest}", re.IGNORECASE | re.DOTALL)
    for function, _ in evidence.code.reached(operation.name, but=evidence.known):
        facts = facts_of(function)
        if any(map(computed.search, facts.texts)):
            return f"it computes the id of {table} itself: {_GIVEN_BY_THE_TABLE}"
        # A text that is put together of parts is not known.
        written = (one for text in facts.texts for one in statements(text))
        for columns, rows in (found.groups() for found in map(insert.match, written) if found is not None):
            if column.lower() in re.findall(r"\w+", (columns or "").lower()):
                what = f"with {column!r}"
            elif rows.upper() == "SELECT":
                what = "from a SELECT"
            elif columns is None:
                what = "without names of columns"
            else:
                continue
            return f"it inserts into {table} by text {what}: {_GIVEN_BY_THE_TABLE}"
    return None


def _inherited(operation: ManagerOperation) -> Mapping[str, str]:
    """The argument names that an operation has from the one that it is like, which a manager may lack."""
    if operation.optional:
        return operation.args
    base = next((one for one in TRADING_OPERATIONS if one.name == operation.like), None)
    return {} if base is None else base.args


def _identity(operation: ManagerOperation) -> list[str]:
    return [name for names in operation.alternatives for name in names]


@functools.lru_cache(256)
def _subscripts(function: Any) -> tuple[str, ...]:
    """Names that a function always takes out of its first argument: `call["name"]`."""
    facts = facts_of(function)
    code: CodeType | None = getattr(function, "__code__", None)
    if not facts.read or code is None or not code.co_argcount:
        return ()
    argument = code.co_varnames[0]
    found: list[str] = []

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.If | ast.IfExp):
            look(node.test)
            return
        if isinstance(node, ast.BoolOp):
            look(node.values[0])
            return
        if isinstance(node, ast.Subscript) and dotted(node.value) == argument and isinstance(node.slice, ast.Constant):
            found.append(str(node.slice.value))
        for child in ast.iter_child_nodes(node):
            look(child)

    for statement in facts.body:
        look(statement)
    return tuple(found)


def needed_names(operation: ManagerOperation) -> Iterator[str]:
    """Arguments, by their standard names, without which an operation cannot be applied to the local view."""
    identity = _identity(operation)
    yield from (name for name in operation.needed() if name not in identity)
    for check in operation.checks:
        yield from _subscripts(check)


def column_of(operation: ManagerOperation) -> tuple[str, str]:
    """The table, with its schema where one is declared, and the column of the id that a call creates."""
    schema, table, column = operation.id_column
    return f"{schema}.{table}" if schema else table, column


def returned_object(operation: ManagerOperation, evidence: Evidence) -> str | None:
    """The mapped class of which a method returns an object, by its annotation or its return statements."""
    for function in _giving(operation.name, evidence):
        with suppress(Exception):  # annotations are code of the host
            found = _mapped_in(hints_of(function).get("return"))
            if found is not None:
                return found
        for one in _returned(facts_of(function)):
            made = _made_object(one, function)
            if made is not None:
                return made
    return None


def _giving(name: str, evidence: Evidence) -> Iterator[Any]:
    """The functions whose answer a method may give: an overridden one only if its answer is passed on."""
    for function in evidence.code.functions(name):
        yield function
        facts = facts_of(function)
        if name in facts.supers and f"super().{name}()" not in map(dotted, _returned(facts)):
            return


def _returned(facts: Facts) -> Iterator[ast.expr]:
    """The expressions that a function returns, also by a local name."""
    for value in facts.returns:
        for one in value.values if isinstance(value, ast.BoolOp) else [value]:
            yield facts.locals.get(one.id, one) if isinstance(one, ast.Name) else one


def _made_object(expression: ast.AST, function: Any) -> str | None:
    """The mapped class of which an expression makes or finds an object."""
    if not isinstance(expression, ast.Call):
        return None
    made: Any = meaning(function, dotted(expression.func))
    if is_mapped_class(made):
        return str(made.__name__)
    if dotted(expression.func).rpartition(".")[2] not in _FINDING:
        return None
    for node in ast.walk(expression):
        if isinstance(node, ast.Call) and node.args and dotted(node.func).rpartition(".")[2] in _CHOOSING:
            chosen: Any = meaning(function, dotted(node.args[0]))
            if is_mapped_class(chosen):
                return str(chosen.__name__)
    return None


def other_answer(operation: ManagerOperation, evidence: Evidence) -> str | None:
    """A warning where an outage would answer with something else than the method does."""
    functions = evidence.code.functions(operation.name)
    if operation.context or operation.best_effort or not functions:
        return None
    if operation.is_told_by_code and applied_answer(evidence.code, operation.name) is not None:
        return None
    if operation.creates:
        plain = plain_answer(evidence.code, operation.name, column_of(operation)[1])
        if plain.ids is None or plain.ids:
            return None
        unseen = "until such a call was seen, an outage does not know that"
        return f"it answers {plain.shown}; {unseen}: annotate an id with -> int, or declare creates=None, and returns="
    hint, facts = inspect.signature(functions[0]).return_annotation, facts_of(answering(functions))
    name = hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))
    returned = [facts.locals.get(one.id, one) if isinstance(one, ast.Name) else one for one in facts.returns]
    constants = {repr(one.value) if isinstance(one, ast.Constant) else "" for one in returned}
    nothing = name in _NOTHING or (hint is inspect.Signature.empty and facts.read and constants <= {"None"})
    if operation.returns is not None:
        return (
            f"it answers None, and an outage answers {operation.returns!r}: declare returns=None" if nothing else None
        )
    ids = [dotted(one) for one in returned if isinstance(one, ast.Attribute) and one.attr == "id"]
    if ids or _IDS.fullmatch(name):
        answer, way = ids[0] if ids else name, 'declare creates="TABLE" where it is the id of a new row, or returns='
    elif nothing or constants <= {"None"}:
        return None
    else:
        answer = "a value" if hint is inspect.Signature.empty else shown(hint)
        way = "declare returns=, a value or a callable that makes it of the call's arguments"
    unseen = "as it was seen to if that can be explained, else None"
    return f"it answers {answer}, and in an outage, in a balance block and with write_behind {unseen}: {way}"


def _mapped_in(hint: Any) -> str | None:
    if is_mapped_class(hint):
        return str(hint.__name__)
    found = (_mapped_in(one) for one in typing.get_args(hint) if one is not hint)
    return next((one for one in found if one is not None), None)
