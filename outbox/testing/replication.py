"""A streaming standby of a private PostgreSQL server: it follows, falls behind when told to, and is promoted."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from .cluster import Cluster
from .postgres_server import PostgresServer
from .processes import wait_until


class Standby(PostgresServer):
    """A hot standby of `primary`, which must run at the first `start`.

    A server of its own in every other respect: own port, own files, to be killed and started at will.
    """

    def __init__(self, primary: PostgresServer, **settings: Any) -> None:
        """`settings` as for `PostgresServer`; login and durability are the primary's unless given."""
        super().__init__(**{"fsync": primary.fsync, "password": primary.password, **settings})
        self._primary = primary

    def __enter__(self) -> Standby:
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)

    def _fill(self, cluster: Cluster) -> None:
        data = cluster.new_folder(cluster.data.name)
        cluster.run("pg_basebackup", ["-D", data, "-d", self._primary.url(), "-X", "stream", "-c", "fast", "-R"])

    def catch_up(self) -> None:
        """Wait until everything that the primary has committed so far is visible here."""
        [(position,)] = self._primary.execute("SELECT pg_current_wal_insert_lsn()::text")
        wait_until(
            lambda: self.execute(f"SELECT pg_last_wal_replay_lsn() >= '{position}'") == [(True,)],
            "catch up with the primary",
        )

    def detach(self) -> None:
        """Receive nothing more: what the primary commits from now on is lost if this server is promoted."""
        self.execute("ALTER SYSTEM SET primary_conninfo = ''")
        self.execute("SELECT pg_reload_conf()")
        wait_until(
            lambda: self.execute("SELECT count(*) FROM pg_stat_wal_receiver") == [(0,)], "detach from the primary"
        )

    def promote(self) -> None:
        """Become a primary of its own, on a new timeline; returns when it takes writes."""
        if self.execute("SELECT pg_promote(true, 60)") != [(True,)]:
            raise self._files().failure("the standby was not promoted within 60 s")
