"""Held parts: what a method reads of the objects in its attributes, such as `self.run.id`."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import Any

from .class_code import ClassCode, remembered
from .method_code import Facts, facts_of


def parts_read(code: ClassCode, name: str) -> dict[str, frozenset[str] | None]:
    """By attribute, the names that are read of what it holds; None where that gets into other hands."""
    found: dict[str, frozenset[str] | None] = {}
    for function, _ in code.reached(name):
        for attribute, names in _parts_in(function).items():
            before = found.get(attribute, frozenset())
            found[attribute] = None if names is None or before is None else before | names
    return found


def parts_changed(code: ClassCode, name: str) -> set[str]:
    """Attributes of which a method assigns something that they hold: `self.run.trades += 1`."""
    found: set[str] = set()
    for function, _ in code.reached(name):
        facts = facts_of(function)
        for node in _nodes(facts):
            if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
                inside = [one for one in ast.walk(node.value) if isinstance(one, ast.Attribute)]
                found |= {one.attr for one in inside if _is_mine(one, facts)}
    return found


@remembered(1024)
def changes_itself(cls: type, names: frozenset[str]) -> bool:
    """Whether one of these methods or properties of a class changes its object."""
    code = ClassCode(cls)
    return any(code.changed_by(name) for name in names)


@lru_cache(maxsize=4096)
def _parts_in(function: Any) -> dict[str, frozenset[str] | None]:
    facts = facts_of(function)
    found: dict[str, set[str]] = {}
    whole: set[str] = set()
    inside: set[int] = set()
    for node in _nodes(facts):
        if not isinstance(node, ast.Attribute):
            continue
        held = node.value
        if isinstance(held, ast.Attribute) and _is_mine(held, facts):
            inside.add(id(held))
            found.setdefault(held.attr, set()).add(node.attr)
        elif _is_mine(node, facts) and id(node) not in inside:
            whole.add(node.attr)
    return {name: None if name in whole else frozenset(found[name]) for name in found.keys() | whole}


def _nodes(facts: Facts) -> list[ast.AST]:
    """Every node of a function, each one before those in it."""
    return [node for statement in facts.body for node in ast.walk(statement)]


def _is_mine(node: ast.Attribute, facts: Facts) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == facts.myself
