"""What is foreseen of a method's attributes is what the method does to them, for methods that are made at random."""

from __future__ import annotations

import importlib.util
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from outbox.integrations.host import Host
from outbox.integrations.state.foreseen import Foreseen, changed

ATTRIBUTES, ARGUMENTS = ("a", "b", "c"), ("x", "y")


class Refused(Exception):
    """Raised by a method, or by what stands for its database."""


class Writer:
    """Makes the source of a class of which each method calls only those behind it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def source(self) -> str:
        lines = ["from tests.unit.test_foreseen import Base, Refused", "", "class Middle(Base):"]
        for name, callees in (("helper", ()), ("method", ("self.helper",))):
            lines += self._function(name, callees)
        lines += ["", "class Made(Middle):", *self._function("method", ("super().method", "self.helper"))]
        return "\n".join(lines) + "\n"

    def _function(self, name: str, callees: tuple[str, ...]) -> list[str]:
        return [f"    def {name}(self, x, y=2):", "        n = y", *self._body("        ", callees, 3), ""]

    def _body(self, indent: str, callees: tuple[str, ...], depth: int) -> list[str]:
        found = [line for _ in range(self.random.randint(1, 4)) for line in self._statement(indent, callees, depth)]
        return found or [f"{indent}pass"]

    def _statement(self, indent: str, callees: tuple[str, ...], depth: int) -> list[str]:
        pick, attribute = self.random.choice, self.random.choice(ATTRIBUTES)
        inner = indent + "    "
        kinds = ["sum", "sum", "set", "local", "call", "call", "leave"] + ["if", "if", "with", "try", "for"] * (
            depth > 0
        )
        match pick(kinds):
            case "sum":
                return [f"{indent}self.{attribute} {pick(('+=', '-='))} {self._value()}"]
            case "set":
                return [f"{indent}self.{attribute} = {self._value()}"]
            case "local":
                return [f"{indent}{pick(('x', 'n'))} = {self._value()}"]
            case "read":  # of what depends on it nothing is foreseen
                return [f"{indent}{pick(('x', 'n'))} = self.database(x)"]
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

    def __init__(self, seed: int) -> None:
        self.a, self.b, self.c = 0, 1, 2
        self.lock, self.random = threading.RLock(), random.Random(seed)

    def database(self, value: Any) -> int:
        if self.random.random() < 0.05:
            raise Refused
        return self.random.randint(0, 2)

    @contextmanager
    def swallowing(self) -> Iterator[None]:
        try:
            yield
        except Refused:
            self.random.random()


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
            except (Refused, NameError, TypeError):
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
