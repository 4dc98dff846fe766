"""Metrics for OpenTelemetry: observable instruments that read the status when a reader collects.

Needs the extra `otel` (the package opentelemetry-api), which is imported where instruments are asked for and nowhere
else; the SDK and its exporter are the program's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .box import Outbox
from .errors import ConfigError, OutboxError
from .log import Log, Repeated
from .monitoring.figures import FIGURES, UP, Figure
from .monitoring.status import OutboxStatus

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

_log = Log("outbox.otel")

# A collection asks each instrument by itself: within so many seconds all get one status.
_SAME_S = 0.5


class _Look:
    """The status, taken once for each collection; None where the store cannot be read.  Thread-safe."""

    def __init__(self, box: Outbox) -> None:
        self._box, self._repeated = box, Repeated(_log)
        self._mutex = threading.Lock()
        self._taken: tuple[float, OutboxStatus | None] | None = None

    def __call__(self) -> OutboxStatus | None:
        with self._mutex:
            now = self._box.clock.monotonic()
            if self._taken is None or now - self._taken[0] > _SAME_S:
                self._taken = now, self._status()
            return self._taken[1]

    def _status(self) -> OutboxStatus | None:
        try:
            status = self._box.status()
        except (OutboxError, OSError) as exc:
            self._repeated.warn("status", "metrics cannot be read: %(error)s", error=exc)
            return None
        self._repeated.over("status")
        return status


def instrument(box: Outbox, provider: MeterProvider | None = None) -> None:
    """Register an observable instrument for each metric of `box`, by the names that Prometheus has, less `_total`.

    `provider` is the global one where none is given.  OpenTelemetry takes no instrument back: once the outbox is
    closed, `lmdb_outbox_up` is 0 and the others are silent.  Raises `ConfigError` where the package is missing.
    """
    try:
        from opentelemetry import metrics
    except ImportError as exc:
        raise ConfigError(
            "instruments need the package opentelemetry-api", hint="pip install 'lmdb-outbox[otel]'"
        ) from exc
    meter = metrics.get_meter("lmdb-outbox", meter_provider=provider)
    look = _Look(box)
    for figure in FIGURES:
        create: Any = meter.create_observable_gauge
        if figure.kind == "counter":
            create = meter.create_observable_counter
        observe = _observer(figure, look, str(box.path), metrics.Observation)
        create(figure.full_name.removesuffix("_total"), [observe], description=figure.meaning)


def _observer(
    figure: Figure, look: _Look, store: str, observation: type[Observation]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: CallbackOptions) -> Iterable[Observation]:
        del options
        status = look()
        if status is None:
            return [observation(0, {"store": store})] if figure is UP else []
        return [
            observation(value, {"store": store, **dict(zip(figure.labels, labels, strict=True))})
            for labels, value in figure.read(status)
        ]

    return observe
