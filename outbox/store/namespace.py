"""Namespace: the scope of a store's idempotency keys, kept in the store itself.

Idempotency keys are hashes over the namespace.  Under another one no repeated call is recognised, so a setting that
was lost in a new unit file would double writes.  The store keeps the namespace that it was made with, and an engine
with another one is refused.  Public functions are safe from any thread.
"""

from __future__ import annotations

from uuid import UUID

from ..config import OutboxConfig, variable_name
from ..errors import ConfigError, DurabilityError
from ..log import Log
from . import small
from .store import Store

_log = Log("outbox.namespace")

# The small record's name.
NAME = "namespace"


def first_record(config: OutboxConfig, store_id: UUID, now_us: int) -> dict[bytes, bytes]:
    """Return the record of a new store, by its key in the main database."""
    record = small.SmallRecord(NAME.encode(), _configured(config, store_id).encode(), now_us)
    return {small.PREFIX + record.name: record.pack()}


def in_use(store: Store, config: OutboxConfig) -> str:
    """Return the store's namespace; before its first engine has kept one, the configured one."""
    return _kept(store) or _configured(config, store.identity.store_id)


def claim(store: Store, config: OutboxConfig) -> None:
    """Compare the configured namespace with the store's, for an engine that opens it.

    A store of an older version keeps the configured one from now on.  Raises `ConfigError` for another one, unless
    `config.namespace_change_from` names the store's; `DurabilityError` where the confirmed change cannot be kept.
    """
    kept, configured = _kept(store), _configured(config, store.identity.store_id)
    if kept == configured:
        return
    if kept is None:
        try:
            store.put_meta(NAME, configured.encode(), despite_halt=True)
        except DurabilityError as exc:
            # A full store of an older version must still open and drain; the next opening tries again.
            _log.warning("the namespace could not be kept in the store: %(error)s", error=exc)
        return
    if config.namespace_change_from != kept:
        raise ConfigError(
            f"{store.directory} has namespace {kept!r}, {_source(config)} {configured!r}",
            hint=f"{_restore(kept, store)}; {variable_name('namespace_change_from')}={kept} changes it, and calls "
            "made before then count as new",
        )
    store.put_meta(NAME, configured.encode(), despite_halt=True)
    _log.warning(
        "namespace changed from %(before)s to %(now)s: a repeated call of an earlier entry counts as new",
        before=kept,
        now=configured,
    )


def _kept(store: Store) -> str | None:
    value = store.get_meta(NAME)
    return None if value is None else value.decode()


def _configured(config: OutboxConfig, store_id: UUID) -> str:
    return config.namespace or str(store_id)


def _source(config: OutboxConfig) -> str:
    variable = variable_name("namespace")
    return f"{variable} is" if config.namespace else f"{variable} is not set, which means its own id"


def _restore(kept: str, store: Store) -> str:
    variable = variable_name("namespace")
    return f"unset {variable}" if kept == str(store.identity.store_id) else f"set {variable}={kept}"
