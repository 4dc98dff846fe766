"""Python source as a tree, from any thread."""

from __future__ import annotations

import ast
import threading
from typing import Final

# CPython counts the depth of a tree in one place for all threads. A collection of garbage in the middle of a tree may
# let another thread parse, and both then raise SystemError for sound source (github.com/python/cpython/issues/106905).
_ONE_AT_A_TIME: Final = threading.RLock()
_TRIES: Final = 100


def parse(source: str) -> ast.Module:
    """The tree of a module's source.

    Thread-safe, beside the host's own parsing too: a tree that another thread broke is made again.

    Raises:
        SyntaxError, ValueError: The source is not Python, or holds a null byte.
    """
    with _ONE_AT_A_TIME:
        for _ in range(_TRIES):
            try:
                return ast.parse(source)
            except SystemError:
                continue
    raise SyntaxError("other threads parse at the same time, again and again")
