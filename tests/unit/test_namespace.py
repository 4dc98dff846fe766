"""A store keeps its namespace: a program that lost the setting is refused before it doubles a write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from outbox import ConfigError, DurabilityError, Outbox, OutboxConfig
from outbox.clock import SystemClock
from outbox.store.namespace import NAME
from outbox.store.store import Store
from outbox.transfer import exporting
from outbox.transfer.importing import restore
from tests.unit.fakes.rig import Rig

DESK = OutboxConfig(namespace="desk")


def make(directory: Path, config: OutboxConfig = DESK) -> str:
    """A store with one entry of key "fee"; its id."""
    with Outbox.open(directory, config) as box:
        box.enqueue("write", {"fee": 1}, key="fee")
        return str(box.store.identity.store_id)


def test_a_lost_namespace_writes_no_intent_twice(outbox_dir: Path) -> None:
    applied: list[int] = []
    for namespace in ("desk", None, "desk"):
        try:
            rig = Rig(outbox_dir, namespace=namespace)
        except ConfigError:
            continue
        with rig:
            rig.box.enqueue("write", {"fee": 1}, key="fee")
            rig.settle()
            applied += rig.target.applied
    assert applied == [1]


def test_another_namespace_is_refused_with_both_names(outbox_dir: Path) -> None:
    make(outbox_dir)
    with pytest.raises(ConfigError) as caught:
        Outbox.open(outbox_dir, OutboxConfig(namespace="other"))
    assert str(caught.value) == (
        f"{outbox_dir} has namespace 'desk', OUTBOX_NAMESPACE is 'other' (set OUTBOX_NAMESPACE=desk; "
        "OUTBOX_NAMESPACE_CHANGE_FROM=desk changes it, and calls made before then count as new)"
    )
    with Outbox.open(outbox_dir, DESK) as box:
        assert box.enqueue("write", {"fee": 1}, key="fee").seq == 1


def test_a_namespace_that_is_not_set_any_more_is_refused(outbox_dir: Path) -> None:
    store_id = make(outbox_dir)
    said = f"has namespace 'desk', OUTBOX_NAMESPACE is not set, which means its own id '{store_id}'"
    with pytest.raises(ConfigError, match=said):
        Outbox.open(outbox_dir)


def test_a_namespace_where_none_was_set_is_refused(outbox_dir: Path) -> None:
    store_id = make(outbox_dir, OutboxConfig())
    said = f"has namespace '{store_id}', OUTBOX_NAMESPACE is 'desk' .unset OUTBOX_NAMESPACE; "
    with pytest.raises(ConfigError, match=said):
        Outbox.open(outbox_dir, DESK)


def test_a_confirmed_change_holds_and_confirms_nothing_else(outbox_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The confirmation may stay in a unit file: it names the old namespace, and so allows no later change."""
    store_id = make(outbox_dir, OutboxConfig())
    with Outbox.open(outbox_dir, OutboxConfig(namespace="desk", namespace_change_from=store_id)) as box:
        assert box.enqueue("write", {"fee": 1}, key="fee").seq == 2
    assert f"namespace changed from {store_id} to desk" in caplog.text
    with Outbox.open(outbox_dir, DESK) as box:
        assert box.enqueue("write", {"fee": 1}, key="fee").seq == 2
    for namespace in (None, "third"):
        with pytest.raises(ConfigError, match="has namespace 'desk'"):
            Outbox.open(outbox_dir, OutboxConfig(namespace=namespace, namespace_change_from=store_id))


def test_a_change_that_cannot_be_kept_is_not_made(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_id = make(outbox_dir, OutboxConfig())
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_meta", refuse)
        with pytest.raises(DurabilityError):
            Outbox.open(outbox_dir, OutboxConfig(namespace="desk", namespace_change_from=store_id))
    with Outbox.open(outbox_dir) as box:
        assert box.enqueue("write", {"fee": 1}, key="fee").seq == 1


def refuse(self: Store, name: str, value: bytes, **more: Any) -> None:
    raise DurabilityError(f"the store could not store {name!r}: no space")


def forget(directory: Path, config: OutboxConfig) -> None:
    """Make it a store of an older version."""
    with Outbox.open(directory, config) as box:
        box.store.delete_meta(NAME)


def test_an_older_store_keeps_the_namespace_of_its_first_engine(outbox_dir: Path) -> None:
    make(outbox_dir)
    forget(outbox_dir, DESK)
    make(outbox_dir)
    with pytest.raises(ConfigError, match="has namespace 'desk'"):
        Outbox.open(outbox_dir)


def test_an_older_store_opens_where_nothing_can_be_written(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(outbox_dir)
    forget(outbox_dir, DESK)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_meta", refuse)
        with Outbox.open(outbox_dir, DESK) as box:
            assert box.enqueue("write", {"fee": 1}, key="fee").seq == 1
    with Outbox.open(outbox_dir, DESK) as box:
        assert box.store.get_meta(NAME) == b"desk"


def test_an_attached_process_takes_the_namespace_of_the_store(outbox_dir: Path) -> None:
    make(outbox_dir)
    for readonly in (False, True):
        with Outbox.attach(outbox_dir, OutboxConfig(namespace="other"), readonly=readonly) as box:
            found = box.lookup("write", {"fee": 1}, key="fee")
            assert found is not None
            assert found.seq == 1


def test_a_refused_engine_leaves_the_store_to_the_next(outbox_dir: Path) -> None:
    make(outbox_dir)
    for _ in range(2):
        with pytest.raises(ConfigError):
            Outbox.open(outbox_dir)
    make(outbox_dir)


def exported(directory: Path, file: Path) -> Path:
    with file.open("wb") as out:
        assert exporting.export(directory, out.write).sound
    return file


@pytest.mark.slow
def test_a_store_made_of_an_export_has_its_namespace(outbox_dir: Path, tmp_path: Path) -> None:
    make(outbox_dir)
    file = exported(outbox_dir, tmp_path / "export.jsonl")
    shutil.rmtree(outbox_dir)
    # Whatever the importing program has set: it makes no keys.
    restore(file, outbox_dir, OutboxConfig(), SystemClock())
    with pytest.raises(ConfigError, match="has namespace 'desk'"):
        Outbox.open(outbox_dir)
    make(outbox_dir)


def test_a_merge_leaves_the_namespace_of_the_store(outbox_dir: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", OutboxConfig())
    make(outbox_dir)
    file = exported(outbox_dir, tmp_path / "export.jsonl")
    restore(file, tmp_path / "other", OutboxConfig(), SystemClock(), merge=True)
    make(tmp_path / "other", OutboxConfig())
