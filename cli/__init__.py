"""The command line `atb outbox ...`, and how to mount it into a host's own."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .loading import interrupted_afterwards

if TYPE_CHECKING:
    from .main import atb, outbox
    from .mount import register

__all__ = ["atb", "main", "outbox", "register"]

_HOME_OF = {"atb": "main", "outbox": "main", "register": "mount"}


def main() -> None:
    """Entry point of the console scripts."""
    try:
        with interrupted_afterwards():
            run = _loaded("main").main
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("interrupted: nothing is lost\n")
        sys.exit(130)
    run()


_entry_point = main


def __getattr__(name: str) -> Any:
    """A public name, loaded at its first use: the console scripts' `main` must run before anything is loaded."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_loaded(_HOME_OF[name]), name)


def _loaded(module: str) -> Any:
    found = importlib.import_module(f".{module}", __name__)
    # Importing `main.py` puts the module in the place of the function.
    globals()["main"] = _entry_point
    return found
