"""What is foreseen of a method's attributes is what the method does to them, for methods that are made at random."""

from __future__ import annotations

import functools
import importlib.util
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest

from outbox.integrations.code.attribute_code import SET
from outbox.integrations.manager.host import Host
from outbox.integrations.state.foreseen import Foreseen, changed

ATTRIBUTES, ARGUMENTS = ("a", "b", "c"), ("x", "y")
# Ways to change attributes, names and items of these, and not by a plain assignment.
ODD = (
    "setattr(self, 'a', x)",
    "self.__dict__['b'] = n",
    "put(self, x)",
    "n = put(self, 3)",
    "Base.count(self, x)",
    "super(Middle, self).count(x)",
    "getattr(self, 'count')(x)",
    "me = self; me.c = 7",
    "self.doubled = x",
    "self.doubled += 1",
    "self.a, n = n, self.b",
    "self.b = self.c = y",
    "COUNTER += 1; self.a = COUNTER",
    "row['p'] = self.database(x); n = row['p']",
    "row.pop('q', None); self.c = len(row)",
    "row['q'] = x; self.b += row['p']",
    "self.a += (n := x)",
    "x > 1 and self.count(x)",
    "from math import tau as n",
    "Base.shared += 1; self.b = self.shared",
)


class Refused(Exception):
    """Raised by a method, or by what stands for its database."""


class Writer:
    """Makes the source of a class of which each method calls only those behind it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def source(self) -> str:
        lines = ["from tests.unit.test_foreseen import Base, Refused, handing, put", "", "COUNTER = 0", ""]
        lines += ["class Middle(Base):"]
        for name, callees in (("helper", ()), ("method", ("self.helper",))):
            lines += self._function(name, callees)
        lines += ["", "class Made(Middle):", *self._function("method", ("super().method", "self.helper"))]
        return "\n".join(lines) + "\n"

    def _function(self, name: str, callees: tuple[str, ...]) -> list[str]:
        around = ["    @handing"] if callees and self.random.random() < 0.3 else []
        start = ["        global COUNTER", "        n, row = y, {'p': y, 'q': x}"]
        return [*around, f"    def {name}(self, x, y=2):", *start, *self._body("        ", callees, 3), ""]

    def _body(self, indent: str, callees: tuple[str, ...], depth: int) -> list[str]:
        found = [line for _ in range(self.random.randint(1, 4)) for line in self._statement(indent, callees, depth)]
        return found or [f"{indent}pass"]

    def _statement(self, indent: str, callees: tuple[str, ...], depth: int) -> list[str]:
        pick, attribute = self.random.choice, self.random.choice(ATTRIBUTES)
        inner = indent + "    "
        kinds = ["sum", "sum", "set", "local", "call", "call", "leave"]
        kinds += ["odd"] if self.random.random() < 0.5 else []
        kinds += ["if", "if", "with", "try", "finally", "for", "match"] if depth > 0 else []
        match pick(kinds):
            case "sum":
                return [f"{indent}self.{attribute} {pick(('+=', '-='))} {self._value()}"]
            case "set":
                return [f"{indent}self.{attribute} = {self._value()}"]
            case "local":
                return [f"{indent}{pick(('x', 'n'))} = {self._value()}"]
            case "read":  # of what depends on it nothing is foreseen
                return [f"{indent}{pick(('x', 'n'))} = self.database(x)"]
            case "odd":
                return [indent + pick(ODD)]
            case "finally":
                found = [f"{indent}try:", *self._body(inner, callees, depth - 1)]
                found += pick(([], [f"{indent}except Refused:", f"{inner}raise"]))
                return [*found, f"{indent}finally:", *self._body(inner, callees, depth - 1)]
            case "match":
                return [
                    f"{indent}match {self._value()}:",
                    f"{inner}case {pick(('1', 'int(n)', '-2 | 3'))}:",
                    *self._body(inner + "    ", callees, depth - 1),
                ]
            case "call" if callees:
                call = f"{pick(callees)}({self._value()}{pick(('', ', y=' + self._value()))})"
                return [indent + pick((call, f"n = {call}", f"return {call}", f"self.{attribute} = len(str({call}))"))]
            case "leave":
                return [indent + pick(("return True", "return False", "return n", "raise Refused", "pass", "pass"))]
            case "if":
                found = [f"{indent}if {self._test()}:", *self._body(inner, callees, depth - 1)]
                return found + pick(([], [f"{indent}else:", *self._body(inner, callees, depth - 1)]))
            case "with":
                entered = pick(("self.lock", "self.lock", "self.swallowing()"))
                return [f"{indent}with {entered}:", *self._body(inner, callees, depth - 1)]
            case "try":
                end = pick(("raise", "return False", "pass"))
                return [
                    f"{indent}try:",
                    *self._body(inner, callees, depth - 1),
                    f"{indent}except Refused:",
                    inner + end,
                ]
            case "for":
                return [f"{indent}for n in range(self.database(2)):", *self._body(inner, callees, depth - 1)]
        return [f"{indent}pass"]

    def _value(self) -> str:
        one, other = (self.random.choice((*ARGUMENTS, "n", "1", "self.a", "self.b", "self.c")) for _ in range(2))
        return self.random.choice((one, f"{one} + {other}", f"max({one}, {other})", f"-{one}", f"{one} * 2"))

    def _test(self) -> str:
        tests = (
            f"{self._value()} > {self._value()}",
            f"not {self._value()}",
            "self.database(x)",
            "n and self.database(1)",
        )
        return self.random.choice(tests)


class Base:
    """What the methods use: a lock, a block that swallows, and something that stands for the database."""

    shared = 0

    def __init__(self, seed: int) -> None:
        self.a, self.b, self.c = 0, 1, 2
        self.lock, self.random = threading.RLock(), random.Random(seed)

    def database(self, value: Any) -> int:
        if self.random.random() < 0.05:
            raise Refused
        return self.random.randint(0, 2)

    def count(self, x: int) -> None:
        self.a += x

    @property
    def doubled(self) -> int:
        return self.c // 2

    @doubled.setter
    def doubled(self, value: int) -> None:
        self.c = value * 2

    @contextmanager
    def swallowing(self) -> Iterator[None]:
        try:
            yield
        except Refused:
            self.random.random()


def put(manager: Any, x: int) -> int:
    """Change an attribute behind the manager's back."""
    manager.b = x
    return x


def handing(function: Any) -> Any:
    """Run a method, as a decorator that looks at its answer."""

    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = function(self, *args, **kwargs)
        if answer:
            self.looked = True
        return answer

    return wrapper


def clamping(function: Any) -> Any:
    """Run a method with other arguments."""

    @functools.wraps(function)
    def wrapper(self: Any, x: int, y: int = 2) -> Any:
        return function(self, abs(x), y)

    return wrapper


class Clamped(Base):
    @clamping
    def method(self, x: int, y: int = 2) -> None:
        self.a += x


class Guarded(Base):
    """Its attributes are not what is assigned to them."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, 3 if name == "a" else value)

    def method(self, x: int) -> None:
        self.a = x
        self.b += x


class Keeping(Base):
    """Passes itself nowhere, and fills in its row: all of that is foreseen."""

    @staticmethod
    def _fee(amount: int) -> float:
        return amount * 0.1

    @handing
    def method(self, row: dict[str, Any]) -> bool:
        row["session_id"] = self.database(1)
        try:
            if isinstance(self, Base) and getattr(self, "c", 0) > 5:
                return False
            fee = self._fee(row["pnl"])
            self.a += row["pnl"]
            return bool(fee)
        finally:
            self.b = 9


SEEN, COUNTS, LEVEL = 0, {"n": 0}, 5


def see(x: int = 0) -> int:
    """Change what stands in this module."""
    global SEEN
    SEEN += 1
    COUNTS["n"] += 1
    return x + SEEN


class Counting(Base):
    """Takes names of its module which a call that waits does not change yet."""

    def method(self, x: int) -> None:
        see()
        self.a = SEEN
        self.b = COUNTS["n"]
        self.c += see(x)


class Entering(Base):
    """Enters blocks of attributes, of which some swallow errors."""

    def __init__(self, seed: int, guard: Any) -> None:
        super().__init__(seed)
        self.guard = guard

    @contextmanager
    def raising(self) -> Iterator[None]:
        with self.lock:
            try:
                yield
            except Refused:
                self.random.random()
                raise

    def method(self, x: int) -> None:
        with self.lock:
            self.a += x + LEVEL
        with self.guard:
            self.b += 1
            self.database(x)
            self.c += 1


class Opening(Entering):
    def method(self, x: int) -> None:
        with self.guard.raising():
            self.b += 1
        with self.guard.swallowing():
            self.c += 1


class Early(Base):
    """Its helper may answer False before it counts, which refuses nothing."""

    def method(self, x: int) -> bool:
        self._note(x)
        self.b += x
        return True

    def _note(self, x: int) -> bool:
        if self.database(x):
            return False
        self.a += x
        return True


def foreseen_of(manager: Any) -> Foreseen:
    host = SimpleNamespace(manager_class=type(manager), attributes=lambda: dict(vars(manager)))
    return Foreseen(cast(Host, host), ["method"])


def test_helper_that_answers_false_refuses_no_call() -> None:
    assert foreseen_of(Early(1)).of("method", {"x": 3}, set) == {"b": 3}


class Plain:
    def __enter__(self) -> None:
        """Nothing is entered."""

    def __exit__(self, *_: object) -> Literal[False]:
        return False


@pytest.mark.parametrize("guard", [suppress(Refused), ExitStack(), Entering(1, None)])
def test_block_of_an_attribute_that_may_swallow_is_not_foreseen(guard: Any) -> None:
    assert foreseen_of(Entering(1, guard)).of("method", {"x": 3}, set) == {"a": 8}


@pytest.mark.parametrize("guard", [threading.Lock(), threading.Condition(), nullcontext(), Plain()])
def test_block_of_an_attribute_that_raises_is_foreseen(guard: Any) -> None:
    assert foreseen_of(Entering(1, guard)).of("method", {"x": 3}, set) == {"a": 8, "b": 1, "c": 1}


def test_block_of_a_generator_is_foreseen_if_it_raises_again() -> None:
    assert foreseen_of(Opening(1, Entering(1, None))).of("method", {"x": 3}, set) == {"b": 1}


def test_name_of_a_module_that_functions_change_is_not_foreseen() -> None:
    before = SEEN
    assert foreseen_of(Counting(1)).of("method", {"x": 3}, set) == {}
    assert before == SEEN


@pytest.mark.parametrize("cls", [Clamped, Guarded])
def test_changed_argument_or_assignment_foresees_nothing(cls: Any) -> None:
    assert foreseen_of(cls(1)).of("method", {"x": -3, "y": 2}, set) == {}


def test_filled_in_row_and_finally_are_foreseen() -> None:
    assert foreseen_of(Keeping(1)).of("method", {"row": {"pnl": 4}}, set) == {"a": 4, "b": [SET, 1, 9]}


def made(seed: int, directory: Path) -> Any:
    """The class of one seed; its source is a file, as that of a manager."""
    path = directory / f"made_{seed}.py"
    path.write_text(Writer(seed).source())
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Made


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 240, 60))
def test_foreseen_is_what_the_method_does(first: int, tmp_path: Path) -> None:
    told = 0
    for seed in range(first, first + 60):
        cls = made(seed, tmp_path)
        manager = cls(seed)
        foreseen = foreseen_of(manager)
        for x, y in [(x, y) for x in (-2, 0, 1, 5) for y in (1, 2, 4)]:
            before = {name: getattr(manager, name) for name in ATTRIBUTES}
            expected = foreseen.of("method", {"x": x, "y": y}, set)
            try:
                answer = manager.method(x, y)
            except (Refused, NameError, TypeError, KeyError):
                continue
            if answer is False:
                continue
            for name, change in expected.items():
                told += 1
                source = (tmp_path / f"made_{seed}.py").read_text()
                assert changed(before[name], change) == getattr(manager, name), (
                    f"{name} of seed {seed}, x={x}:\n{source}"
                )
    # Nothing would be proved by a silence.
    assert told > 100
