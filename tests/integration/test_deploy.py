"""What lies in deploy/ is sound, and names only what exists: metrics, commands, options and settings."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from outbox import OutboxConfig
from outbox.cli import atb
from outbox.config import variable_name
from outbox.monitoring.figures import FIGURES

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "outbox.rules.yml"
RULES_TEST = DEPLOY / "prometheus" / "outbox.rules.test.yml"
DASHBOARD = DEPLOY / "grafana" / "lmdb-outbox.json"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE = DEPLOY / "compose" / "docker-compose.yml"
KUBERNETES = DEPLOY / "kubernetes" / "engine.yaml"
PROMTOOL = shutil.which("promtool")
ANALYZE = shutil.which("systemd-analyze")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool (Debian package prometheus)")


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\blmdb_outbox_\w+", expression))


KNOWN = {figure.full_name for figure in FIGURES}


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# -- Prometheus


def rules() -> list[dict[str, Any]]:
    return [rule for group in loaded(RULES)["groups"] for rule in group["rules"]]


def promtool(*arguments: str, folder: Path) -> None:
    done = subprocess.run([str(PROMTOOL), *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_alert_rules_are_sound() -> None:
    promtool("check", "rules", RULES.name, folder=RULES.parent)


@needs_promtool
def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", RULES_TEST.name, folder=RULES.parent)


def test_every_alert_is_seen_firing_by_its_test() -> None:
    fired = {
        one["alertname"]
        for test in loaded(RULES_TEST)["tests"]
        for one in test["alert_rule_test"]
        if "exp_alerts" in one
    }
    assert {rule["alert"] for rule in rules()} == fired


def test_alerts_name_metrics_that_exist_and_say_how_bad_it_is() -> None:
    for rule in rules():
        assert metrics_in(rule["expr"]), rule["alert"]
        assert metrics_in(rule["expr"]) <= KNOWN, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} <= set(rule["annotations"])


def test_every_alert_is_described() -> None:
    described = (ROOT / "docs" / "how-to" / "monitor.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(Outbox\w+)` \|", described, re.MULTILINE) == [rule["alert"] for rule in rules()]


# -- Grafana


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_dashboard_names_metrics_that_exist() -> None:
    assert len(queries()) > 15
    for expression in queries():
        assert metrics_in(expression), expression
        assert metrics_in(expression) <= KNOWN, expression
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert metrics_in(json.dumps(board["templating"])) <= KNOWN
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


@needs_promtool
def test_the_queries_of_the_dashboard_are_sound(tmp_path: Path) -> None:
    plain = [one.replace("$__rate_interval", "5m").replace("$store", ".*") for one in queries()]
    recorded = [{"record": f"query:{number}", "expr": one} for number, one in enumerate(plain)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": recorded}]}))
    promtool("check", "rules", "rules.yml", folder=tmp_path)


# -- commands and settings


def check_command(words: list[str]) -> None:
    """A call of `atb` names a command and options that exist."""
    assert words[:2] == ["atb", "outbox"]
    group = atb.commands["outbox"]
    assert isinstance(group, click.Group)
    # Commands are imported when they are asked for.
    command = group.get_command(click.Context(group), words[2])
    assert command is not None, words[2]
    with command.make_context(words[2], words[3:]):
        pass


def written(path: Path) -> list[list[str]]:
    """Every call of `atb` that a file makes: as a list in YAML, or behind `ExecStart=`."""
    text = path.read_text(encoding="utf-8")
    lists = re.findall(r"\[(\"atb\"[^\]]*)\]", text)
    lines = re.findall(r"^Exec\w+=\S*/(atb .*)$", text, re.MULTILINE)
    return [json.loads(f"[{one}]") for one in lists] + [shlex.split(one) for one in lines]


CALLS = {path: calls for path in sorted(DEPLOY.rglob("*")) if path.is_file() and (calls := written(path))}


@pytest.mark.parametrize("path", CALLS, ids=lambda path: path.name)
def test_every_call_in_a_file_is_accepted_by_its_command(path: Path) -> None:
    for call in CALLS[path]:
        check_command(call)


def test_calls_are_found_in_all_files_that_start_the_relay() -> None:
    assert [path.name for path in CALLS] == ["docker-compose.yml", "engine.yaml", "engine-outbox.service"]


@pytest.mark.parametrize("wrong", ["--log-frmat json", "--log-format yaml", "--metrics", "surplus"])
def test_a_wrong_option_in_a_file_would_be_found(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "relay.service").write_text(f"ExecStart=/srv/.venv/bin/atb outbox relay {wrong}\n")
    (call,) = written(tmp_path / "relay.service")
    with pytest.raises(click.UsageError):
        check_command(call)


def test_logs_that_are_collected_are_json() -> None:
    """A cluster's collector reads lines of containers; people read the journal and `docker compose logs`."""
    formats = {path.name: dict(pairwise(call)).get("--log-format") for path, (call,) in CALLS.items()}
    assert formats == {"docker-compose.yml": None, "engine.yaml": "json", "engine-outbox.service": None}


def check_settings(names: set[str]) -> None:
    known = {variable_name(name) for name in OutboxConfig.__dataclass_fields__} | {"OUTBOX_OPERATIONS"}
    assert names <= known


# -- systemd


def unit(path: Path) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string(path.read_text(encoding="utf-8"))
    return {name: dict(section) for name, section in parser.items()}


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_no_unit_depends_on_postgresql(path: Path) -> None:
    found = unit(path)["Unit"]
    assert not {"Requires", "BindsTo", "Requisite", "PartOf"} & set(found)
    assert "postgresql" not in found.get("Wants", "")


def test_the_unit_of_the_relay_calls_it_and_starts_it_again() -> None:
    found = unit(DEPLOY / "systemd" / "engine-outbox.service")
    service = found["Service"]
    program, *rest = shlex.split(service["ExecStart"])
    check_command([Path(program).name, *rest])
    assert service["Restart"] == "always"
    assert found["Unit"]["StartLimitIntervalSec"] == "0"
    # Longer than the relay takes to stop.
    assert int(service["TimeoutStopSec"]) > 20
    check_settings({word.partition("=")[0] for word in shlex.split(service["Environment"])})


def test_both_units_use_one_store_that_they_may_write_to() -> None:
    engine, relay = (unit(DEPLOY / "systemd" / name)["Service"] for name in ("engine.service", "engine-outbox.service"))
    assert engine["Environment"] in relay["Environment"]
    for service in (engine, relay):
        store = dict(word.split("=", 1) for word in shlex.split(service["Environment"]))["OUTBOX_DIR"]
        assert Path(store).is_relative_to(service["ReadWritePaths"])
    assert engine["User"] == relay["User"]


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze (Debian package systemd)")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_finds_nothing_wrong_with_a_unit(path: Path, tmp_path: Path) -> None:
    # Its program is not here.
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        [str(ANALYZE), "verify", str(tmp_path / path.name)], capture_output=True, text=True, check=False
    )
    about_it = [line for line in done.stderr.splitlines() if path.name in line]
    assert about_it == []


# -- Docker Compose


def test_compose_shares_store_and_pids_and_needs_no_postgresql() -> None:
    compose = loaded(COMPOSE)
    services = compose["services"]
    for name in ("engine", "relay"):
        service = services[name]
        assert service["pid"] == "service:pids"
        assert service["volumes"] == ["outbox:/data"]
        assert service["depends_on"] == ["pids"]
        assert service["restart"] == "unless-stopped"
        assert Path(service["environment"]["OUTBOX_DIR"]).is_relative_to("/data")
        check_settings({key for key in service["environment"] if key.startswith("OUTBOX_")})
    assert services["engine"]["environment"] == services["relay"]["environment"]
    assert services["engine"]["user"] == services["relay"]["user"]
    check_command(services["relay"]["command"])
    assert set(compose["volumes"]) == {"outbox", "postgres"}
    # Metrics have no password.
    assert all(port.startswith("127.0.0.1:") for port in services["relay"]["ports"])
    assert "ports" not in services["postgres"]


# -- Kubernetes


def pod() -> dict[str, Any]:
    stateful = loaded(KUBERNETES)
    assert (stateful["apiVersion"], stateful["kind"], stateful["spec"]["replicas"]) == ("apps/v1", "StatefulSet", 1)
    spec: dict[str, Any] = stateful["spec"]["template"]["spec"]
    return spec


def containers() -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in pod()["containers"]}


def probes(container: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (value for name, value in container.items() if name.endswith("Probe"))


def test_kubernetes_runs_the_relay_beside_the_engine_on_one_store() -> None:
    engine, relay = containers()["engine"], containers()["relay"]
    assert pod()["shareProcessNamespace"] is True
    assert engine["env"] == relay["env"]
    assert engine["volumeMounts"] == relay["volumeMounts"]
    environment = {one["name"]: one.get("value") for one in engine["env"]}
    (mount,) = engine["volumeMounts"]
    assert Path(environment["OUTBOX_DIR"]).is_relative_to(mount["mountPath"])
    check_settings({name for name in environment if name.startswith("OUTBOX_")})
    check_command(relay["command"])
    (claim,) = loaded(KUBERNETES)["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == mount["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]


def test_no_probe_restarts_anything_because_postgresql_is_away() -> None:
    assert list(probes(containers()["engine"])) == []
    (alive,) = probes(containers()["relay"])
    assert alive["httpGet"]["path"] == "/metrics"
    ports = {one["name"]: one["containerPort"] for one in containers()["relay"]["ports"]}
    served = containers()["relay"]["command"][-1]
    assert served == f"0.0.0.0:{ports[alive['httpGet']['port']]}"
