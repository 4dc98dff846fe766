"""A URL as SQLAlchemy takes it reaches libpq with the same meaning."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.engine import make_url

from outbox.postgres.address import Address, places


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


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"host": "db", "port": "5432", "dbname": "d"}, {"db:5432/d"}),
        ({"host": "a,b", "port": "1,2", "dbname": "d"}, {"a:1/d", "b:2/d"}),
        ({"host": "a,b", "port": "5432", "dbname": "d"}, {"a:5432/d", "b:5432/d"}),
        ({"hostaddr": "10.0.0.1", "port": "5432", "dbname": "d"}, {"10.0.0.1:5432/d"}),
        ({"host": "/run/postgresql", "port": "5432", "dbname": "d"}, {"/run/postgresql:5432/d"}),
        ({"dbname": "d"}, {":/d"}),
    ],
)
def test_each_host_of_an_address_is_a_place(given: dict[str, str], found: set[str]) -> None:
    assert places(given) == found
