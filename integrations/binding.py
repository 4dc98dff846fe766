"""Binding: gives operations the handlers that replay their calls on a manager."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .. import Operation
from ..clock import SystemClock
from .manager.host import Host
from .manager.host_classes import register_loaded
from .operations import ManagerOperation
from .replay.replay import Replayer
from .view.kept_answers import ManagerRead
from .view.reads import Reads


def bind(operations: Iterable[Operation | ManagerRead], factory: Callable[[], Any]) -> tuple[Operation, ...]:
    """`operations` with handlers that replay on the manager that `factory` makes when one is needed.

    For a relay in a process of its own (`OUTBOX_OPERATIONS`), where no engine is running.
    """
    clock, given = SystemClock(), tuple(operations)
    register_loaded()
    reads = Reads(one for one in given if isinstance(one, ManagerRead))
    calls = [one for one in given if isinstance(one, Operation)]
    return bind_to(Replayer(Host(factory, clock), clock, reads), calls)


def bind_to(
    replayer: Replayer, operations: Iterable[Operation], calls: Mapping[str, ManagerOperation] | None = None
) -> tuple[Operation, ...]:
    """`operations` with handlers that replay on the replayer's manager.

    `calls`: the operations that its manager has a method for; the others are left out.  None: it has all.
    """
    bound: list[Operation] = []
    for operation in operations:
        if not isinstance(operation, ManagerOperation):
            bound.append(operation)
        elif calls is None or operation.name in calls:
            bound.append(dataclasses.replace(operation, handler=replayer.handler(operation)))
    return tuple(bound)
