"""A small but real trading engine with its own database layer: something worth protecting in demos and tests."""

from __future__ import annotations

from .engine import PaperEngine
from .manager import BalanceChange, DatabaseManager, Reconciliation
from .market import Bar, load
from .recording import EngineStats, OnAck, OpenPosition
from .strategy import DEFAULT_STRATEGIES, MovingAverageCrossover, Signal

__all__ = [
    "DEFAULT_STRATEGIES",
    "BalanceChange",
    "Bar",
    "DatabaseManager",
    "EngineStats",
    "MovingAverageCrossover",
    "OnAck",
    "OpenPosition",
    "PaperEngine",
    "Reconciliation",
    "Signal",
    "load",
]
