"""The paper engine as a process of its own, wired to an outbox: what the demo starts and kills.

`python -m outbox.integrations.paper.process --record FILE [--bars N] [--pace N] [--finish]`, with `DATABASE_URL` and
`OUTBOX_DIR` in the environment.  It goes on behind the last bar that the record names.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import Operation, OutboxConfig
from ...errors import ConfigError
from ..durable import TRADING_OPERATIONS, DurableDatabaseManager, bind
from ..trading_engine import wire
from .check import Recorder, read_record
from .engine import PaperEngine
from .manager import DatabaseManager
from .market import load


def paper_operations() -> list[Operation]:
    """The paper engine's operations, for `--operations outbox.integrations.paper.process:paper_operations`.

    The manager connects to `DATABASE_URL` when the first entry is applied.
    """
    return list(bind(TRADING_OPERATIONS, lambda: DatabaseManager(_database_url(OutboxConfig.from_env()))))


def _database_url(config: OutboxConfig) -> str:
    if config.database_url is None:
        raise ConfigError("DATABASE_URL is not set", hint="allowed: postgresql://user:password@host:port/database")
    return config.database_url


def main(arguments: Sequence[str] | None = None) -> int:
    """Trade; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, required=True, help="file of acknowledged calls, appended to")
    parser.add_argument("--bars", type=int, help="trade this many bars of the series instead of all")
    parser.add_argument("--pace", type=float, help="bars per second; default: no pause")
    parser.add_argument("--finish", action="store_true", help="close all positions and end the session at the end")
    options = parser.parse_args(arguments)
    config = OutboxConfig.from_env()
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    bars = load()[: options.bars]
    start = 1 + max((r["index"] for r in _recorded(options.record) if r["kind"] == "bar"), default=-1)
    recorder = Recorder(options.record)
    manager_class: Any = DurableDatabaseManager.of(DatabaseManager)
    engine = PaperEngine(manager_class(_database_url(config)), on_ack=recorder, on_begin=recorder.begin)
    signal.signal(signal.SIGTERM, lambda *_: engine.stop())
    with wire(engine, config=config):
        engine.start()
        at = start
        while at < len(bars):
            recorder("bar", {"index": at})
            reached = engine.run(bars[: at + 1], start=at, bars_per_second=options.pace)
            if reached == at:
                break
            at = reached
        if options.finish and at == len(bars):
            engine.finish(bars[-1])
    return 0


def _recorded(path: Path) -> list[dict[str, Any]]:
    return list(read_record(path)) if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
