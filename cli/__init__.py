"""The command line `atb outbox ...`, and how to mount it into a host's own."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .loading import interrupted_afterwards

if TYPE_CHECKING:
    from .group import atb, outbox
    from .mount import register

__all__ = ["atb", "main", "outbox", "register"]

_HOME_OF = {"atb": "group", "outbox": "group", "register": "mount"}


def main() -> None:
    """Entry point of the console scripts."""
    try:
        with interrupted_afterwards():
            run = importlib.import_module(".group", __name__).main
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("interrupted: nothing is lost\n")
        sys.exit(130)
    run()


def __getattr__(name: str) -> Any:
    """A public name, loaded at its first use: the console scripts' `main` must run before anything is loaded."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
