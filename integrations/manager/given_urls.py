"""Given URLs: where a manager connects to, before it can be built."""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError


def urls_given_to(factory: Any) -> list[URL]:
    """The addresses of PostgreSQL among the arguments that a `functools.partial` gives to a manager's class."""
    found = dict[URL, None]()
    while isinstance(factory, functools.partial):
        for one in (*factory.args, *factory.keywords.values()):
            with suppress(ArgumentError):
                url = make_url(one) if isinstance(one, str | URL) else None
                if url is not None and url.drivername.partition("+")[0] in ("postgresql", "postgres"):
                    found[url] = None
        factory = factory.func
    return list(found)
