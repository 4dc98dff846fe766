"""The command line `atb outbox ...`, and how to mount it into a host's own."""

from __future__ import annotations

from .main import atb, main, outbox
from .mount import register

__all__ = ["atb", "main", "outbox", "register"]
