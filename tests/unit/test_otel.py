"""OpenTelemetry gets the figures that Prometheus gets, and nobody who does not ask imports it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint, Sum

from outbox import Outbox, OutboxStatus
from outbox.monitoring.figures import FIGURES
from outbox.otel import instrument
from tests.unit.fakes.rig import Rig


def collected(reader: InMemoryMetricReader) -> dict[str, list[tuple[dict[str, object], float]]]:
    """Attributes and values by name; counters with a star."""
    data = reader.get_metrics_data()
    found: dict[str, list[tuple[dict[str, object], float]]] = {}
    for resource in data.resource_metrics if data is not None else []:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                name = f"{metric.name}*" if isinstance(metric.data, Sum) and metric.data.is_monotonic else metric.name
                points = [one for one in metric.data.data_points if isinstance(one, NumberDataPoint)]
                found[name] = [(dict(one.attributes or {}), one.value) for one in points]
    return found


def test_the_instruments_are_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader = InMemoryMetricReader()
    looks: list[OutboxStatus] = []
    with Rig(tmp_path / "outbox") as rig:
        store = {"store": str(rig.box.path)}
        status = rig.box.status

        def counted(box: Outbox) -> OutboxStatus:
            looks.append(status())
            return looks[-1]

        monkeypatch.setattr(Outbox, "status", counted)
        instrument(rig.box, MeterProvider([reader]))
        assert looks == []
        rig.enqueue("a", "b")
        found = collected(reader)
        assert len(looks) == 1
        assert found["lmdb_outbox_pending_entries"] == [(store, 2)]
        assert found["lmdb_outbox_acknowledged_entries*"] == [(store, 2)]
        assert ({**store, "state": "unknown"}, 1) in found["lmdb_outbox_relay_breaker"]
        names = {figure.full_name.removesuffix("_total") for figure in FIGURES}
        assert {name.removesuffix("*") for name in found} <= names
        rig.clock.advance(1)
        rig.enqueue("c")
        assert collected(reader)["lmdb_outbox_pending_entries"] == [(store, 3)]
        monkeypatch.undo()
        rig.clock.advance(1)
    assert collected(reader) == {"lmdb_outbox_up": [(store, 0)]}
    rig.clock.advance(1)
    collected(reader)
    # OpenTelemetry goes on asking until the program ends.
    assert [record.levelname for record in caplog.records if "metrics cannot be read" in record.message] == ["WARNING"]


@pytest.mark.slow
def test_without_the_package_the_way_out_is_named(tmp_path: Path) -> None:
    code = f"""
import sys
import outbox.otel
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
sys.modules["opentelemetry"] = None
with outbox.Outbox.open({str(tmp_path / "outbox")!r}) as box:
    try:
        outbox.otel.instrument(box)
    except outbox.ConfigError as exc:
        print(exc)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "instruments need the package opentelemetry-api (pip install 'lmdb-outbox[otel]')\n"
