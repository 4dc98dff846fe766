"""A URL as SQLAlchemy takes it reaches libpq with the same meaning."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.engine import make_url

from outbox.postgres.address import Address


@pytest.mark.parametrize(
    "query",
    [
        "host=one:5433&host=other:5434",
        "host=one%3A5433&host=other&target_session_attrs=read-write",
        "host=one&host=other",
        "host=one:5433",
        "host=one,other&port=5433,5434",
        "host=/run/postgresql",
        "host=one:5433&host=other:5434&application_name=the%20engine",
    ],
)
def test_hosts_are_those_that_sqlalchemy_connects_to(query: str) -> None:
    url = f"postgresql+psycopg2://clerk:p%40ss@/desk?{query}"
    dialect: Any = PGDialect_psycopg2
    _, wanted = dialect().create_connect_args(make_url(url))
    given = Address(url).parameters()
    wanted = {"dbname" if name in ("database", "dbname") else name: str(value) for name, value in wanted.items()}
    if set(wanted.get("port", "")) <= {","}:
        wanted.pop("port", None)  # the default ones
    assert given == wanted


def test_hosts_of_ipv6_have_ports_too() -> None:
    given = Address("postgresql://clerk@/desk?host=[::1]:5433&host=other").parameters()
    assert (given["host"], given["port"]) == ("::1,other", "5433,")
