"""A module that the host loads when it first needs it, which may be in a replay."""

from __future__ import annotations

from time import time as seconds


def reading() -> float:
    return seconds()
