"""The command line: `atb outbox status | drain | compact | demo`."""

from __future__ import annotations

from .main import atb, main, outbox

__all__ = ["atb", "main", "outbox"]
