"""An engine as a process of its own: trades, and stops at the bars that it was given until it is told to go on."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from .journal import Journal
from .kinds import KINDS
from .market import prices

Order = dict[str, Any]
# An engine, its status, which is told when it has stopped, and what waits for its background work at a pause.
Parts = tuple[Any, Callable[[], dict[str, Any]], Callable[[], None]]
Made = Callable[[Order, Journal, list[float]], AbstractContextManager[Parts]]


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def plain(order: Order, journal: Journal, closes: list[float]) -> Iterator[Parts]:
    kind = KINDS[order["kind"]]
    yield kind.engine(kind.manager(order["url"]), journal, closes), dict, lambda: None


def serve(made: Made) -> None:
    """Trade as the order in the first argument says."""
    order = json.loads(sys.argv[1])
    journal = Journal(Path(order["journal"]))
    with made(order, journal, prices(order["bars"])) as (engine, status, settle):
        engine.start()
        first = order["first"]
        for bar in [*order["pauses"], order["bars"]]:
            engine.run(first, bar)
            if engine.failed:
                say(failed=engine.failed)
                return
            first = bar
            if bar < order["bars"]:
                settle()
                say(at=bar)
                sys.stdin.readline()
        engine.stop()
        say(**status())
    say(done=True)


if __name__ == "__main__":
    serve(plain)
