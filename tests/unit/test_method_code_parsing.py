"""Sources are read beside others that parse."""

from __future__ import annotations

import ast
import gc
import inspect

from integrations.code.method_code import parse

SOURCE = inspect.getsource(inspect)


class _Parsing:
    """Garbage that parses when it is collected, in the middle of a tree, as a thread does that takes over there."""

    def __init__(self) -> None:
        self.own = self

    def __del__(self) -> None:
        ast.parse("a = [(1, 2)]")


def test_tree_that_another_parse_broke_is_made_again() -> None:
    whole = len(ast.parse(SOURCE).body)
    gc.collect()
    gc.disable()
    try:
        _Parsing()
    finally:
        gc.enable()
    assert len(parse(SOURCE).body) == whole
