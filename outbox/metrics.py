"""Metrics for Prometheus: a collector that reads the status when it is scraped, and a server for it.

Needs the extra `metrics` (the package prometheus-client), which is imported where metrics are asked for and nowhere
else.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .box import Outbox
from .errors import ConfigError, OutboxError
from .log import Log, Repeated
from .monitoring.figures import FIGURES, UP
from .monitoring.status import OutboxStatus

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

_log = Log("outbox.metrics")

DEFAULT_ADDRESS = "127.0.0.1:9464"
_ADDRESS_HINTS = {
    errno.EADDRINUSE: "choose a free port",
    errno.EADDRNOTAVAIL: "name an address of this machine, or 0.0.0.0 for all of them",
    errno.EACCES: "choose a port above 1023",
}
_MISSING_HINT = "pip install 'lmdb-outbox[metrics]'"


class StatusCollector:
    """Gives `prometheus_client` the figures of one status each time it is asked.

    Register it where your program has a registry of its own: `REGISTRY.register(StatusCollector(box.status, path))`.
    Any thread.  A store that cannot be read gives `lmdb_outbox_up 0` and nothing else.
    """

    def __init__(self, look: Callable[[], OutboxStatus], store: str) -> None:
        """`look` takes the status; `store` is the value of the label `store`.

        Raises `ConfigError` where prometheus-client is missing.
        """
        self._look, self._store, self._repeated = look, store, Repeated(_log)
        self._core = _prometheus().metrics_core

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the store."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The figures as of now."""
        try:
            status = self._look()
        except (OutboxError, OSError) as exc:
            self._repeated.warn("status", "metrics cannot be read: %(error)s", error=exc)
            down = self._core.GaugeMetricFamily(UP.full_name, UP.meaning, labels=["store"])
            down.add_metric([self._store], 0)
            yield down
            return
        self._repeated.over("status")
        for figure in FIGURES:
            family = (self._core.CounterMetricFamily if figure.kind == "counter" else self._core.GaugeMetricFamily)(
                figure.full_name, figure.meaning, labels=["store", *figure.labels]
            )
            for labels, value in figure.read(status):
                family.add_metric([self._store, *labels], value)
            yield family


class MetricsServer:
    """Serves the metrics of one outbox over HTTP, in a thread of its own.  `close` may be called twice."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        """Use `start_metrics` instead."""
        self._server, self._thread = server, thread
        host, port = server.server_address[:2]
        # Where it listens; the port that the system chose where 0 was asked for.
        self.address = f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def start_metrics(box: Outbox, address: str = DEFAULT_ADDRESS) -> MetricsServer:
    """Serve the metrics of `box` at `address` (`HOST:PORT`); the status is read when they are scraped.

    Everyone who can reach the address can read them: there is no password.  Close the server before the outbox.  Raises
    `ConfigError` for a bad address, one that is in use, or a missing package.
    """
    host, port = parse_address(address)
    prometheus = _prometheus()
    try:
        server, thread = prometheus.start_http_server(port, host, registry=registry_of(box))
    except OSError as exc:
        hint = _ADDRESS_HINTS.get(exc.errno or 0, "choose another address or port")
        raise ConfigError(f"metrics cannot be served at {address}: {exc.strerror or exc}", hint=hint) from exc
    return MetricsServer(server, thread)


def registry_of(box: Outbox) -> CollectorRegistry:
    """A registry with the metrics of `box` and nothing else.  Raises `ConfigError` where the package is missing."""
    registry: CollectorRegistry = _prometheus().CollectorRegistry()
    registry.register(StatusCollector(box.status, str(box.path)))
    return registry


def as_text(box: Outbox) -> str:
    """The metrics in the text format of Prometheus.  Raises `ConfigError`, or what `Outbox.status` raises."""
    box.status()  # a store that cannot be read is an error here, no metric
    text: bytes = _prometheus().generate_latest(registry_of(box))
    return text.decode()


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, of `[::1]:PORT` too.  Raises `ConfigError`."""
    host, _, port = address.rpartition(":")
    with suppress(ValueError):
        if host and 0 <= int(port) <= 65535:
            return host.removeprefix("[").removesuffix("]"), int(port)
    raise ConfigError(f"address of the metrics is {address!r}", hint=f"allowed: HOST:PORT, such as {DEFAULT_ADDRESS}")


def _prometheus() -> Any:
    try:
        import prometheus_client
    except ImportError as exc:
        raise ConfigError("metrics need the package prometheus-client", hint=_MISSING_HINT) from exc
    return prometheus_client
