"""Code version: identifies the code of a method, from which something was learned."""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
from collections.abc import Iterator
from types import CodeType

from .method_code import parsed
from .tables_named import Search

# Methods of a logger, and `print`: what they are given changes nothing that the method does.
LOGS = frozenset({"debug", "info", "warning", "warn", "error", "exception", "critical", "log", "print"})


def code_version(cls: type, method: str) -> str:
    """A hash over the code of `method` and of all that it runs, and over the columns of the tables that it names.

    Comments, docstrings, annotations and what is logged do not count.  It begins with the form of the code: source and
    compiled code cannot be compared.
    """
    search = Search.of(cls, method)
    # attrs puts the hash of a text, which is another one in each process, into the source that it makes of it.
    codes = [one.__code__ for one in search.functions if one.__code__.co_name != "__hash__"]
    form = "source" if all(parsed(one) is not None for one in codes) else "compiled"
    texts = sorted({*map(_text_of, codes), *search.columns})
    hashed = hashlib.blake2b("\n".join(texts).encode("utf-8", "replace"), digest_size=12)
    return f"{form}:{hashed.hexdigest()}"


@functools.lru_cache(4096)
def _text_of(code: CodeType) -> str:
    node = parsed(code)
    if node is None:
        return "\n".join(_compiled(code))
    text = ast.unparse(ast.fix_missing_locations(_Plain().visit(copy.deepcopy(node))))
    return "\n".join(line for line in text.splitlines() if line.strip() != "pass")


class _Plain(ast.NodeTransformer):
    """Puts `pass` in place of statements that change nothing of what a function writes and answers."""

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        value = node.value
        logs = isinstance(value, ast.Call) and getattr(value.func, "attr", getattr(value.func, "id", None)) in LOGS
        return ast.Pass() if logs or isinstance(value, ast.Constant) else node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def _compiled(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr(code.co_names)
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _compiled(const)
        else:
            yield repr(sorted(map(repr, const)) if isinstance(const, frozenset) else const)
