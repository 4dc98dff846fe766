"""Session factories for copies of a manager: like its own, but bound to something of ours."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy.orm import Session, scoped_session, sessionmaker

_SETTING = re.compile(
    r"\s*SET\s+(?:(LOCAL|SESSION)\s+)?(?:(TIME\s+ZONE)\b|([A-Za-z_][A-Za-z0-9_.]*)\s*(?:=|\bTO\b))", re.IGNORECASE
)


def factory_like(original: Any, behaviour: type[Session], **options: Any) -> Any:
    """A factory like `original` (a sessionmaker, a scoped_session around one, or None) with `behaviour` mixed in.

    The class of its sessions is new, so that listeners on it end with it; `options` replace the original's.
    """
    maker = original.session_factory if isinstance(original, scoped_session) else original
    given = dict(getattr(maker, "kw", {}))
    base = getattr(maker, "class_", Session)
    bases = (behaviour,) if base is Session else (behaviour, base)
    info = {**(given.pop("info", None) or {}), **options.pop("info", {})}
    made = sessionmaker(class_=type(behaviour.__name__, bases, {}), **{**given, **options, "info": info})
    return scoped_session(made) if isinstance(original, scoped_session) else made


def session_class(factory: Any) -> type[Session]:
    """The class whose events are those of all sessions that `factory` makes."""
    maker = factory.session_factory if isinstance(factory, scoped_session) else factory
    made: type[Session] = maker.class_
    return made


def is_setting(statement: str) -> bool:
    """Whether it is a SET statement, which writes nothing."""
    return _SETTING.match(statement) is not None
