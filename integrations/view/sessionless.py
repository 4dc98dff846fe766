"""Sessionless: tells managers without trading sessions, all of whose rows belong to one account.

The local view keeps what it knows by session.  Without one it would know nothing of such a manager.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..code.members import names_set_by
from .kept_answers import ManagerRead
from .reads import ACTIVE_SESSION, LAST_SESSION, LOCAL_READS, Reads

if TYPE_CHECKING:
    from ..manager.host import Host
    from ..operations import ManagerOperation

_CURRENT = "_current_session_id"
_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def is_sessionless(host: Host, calls: Iterable[ManagerOperation], reads: Reads) -> bool:
    """Whether nothing that is declared of a manager, and nothing in its class, has to do with trading sessions."""
    calls, cls = tuple(calls), host.manager_class
    if cls is None or hasattr(cls, _CURRENT) or _CURRENT in names_set_by(cls):
        return False
    if any(call.session is not None for call in calls) or host.has("set_current_session"):
        return False
    if any(host.has(reads.name(name)) for name in (ACTIVE_SESSION, LAST_SESSION)):
        return False
    answered = [read for name in LOCAL_READS if (read := reads.local(reads.name(name))) and host.has(read.name)]
    if not answered:
        return False
    declared: list[ManagerOperation | ManagerRead] = [*calls, *answered]
    for one in declared:
        takes = host.signature(one.name).parameters.values()
        if any(one.standard_name(argument.name) == "session_id" for argument in takes):
            return False
        if one in answered and any(argument.kind in _ANY for argument in takes):
            return False
    return True
