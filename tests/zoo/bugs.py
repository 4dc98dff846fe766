"""The bug zoo: deliberate defects, each of a kind that would lose, double or reorder a write, or hide that it did.

Each is a small change of one file.  The project's own tests must fail for every one of them; `make zoo` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """`old` occurs exactly once in `file` and becomes `new`; some test of `tests` must fail then."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


BUGS = (
    Bug(
        "metasync off: a power cut can lose acknowledged commits",
        "outbox/environment.py",
        "metasync=True",
        "metasync=False",
        ("tests/unit/test_environment.py", "tests/faults/test_power_cut.py", "tests/faults/test_system_calls.py"),
    ),
    Bug(
        "sync off: what is acknowledged may be in memory only",
        "outbox/environment.py",
        " sync=True,",
        " sync=False,",
        ("tests/unit/test_environment.py", "tests/faults/test_power_cut.py", "tests/faults/test_system_calls.py"),
    ),
    Bug(
        "the ledger is written before PostgreSQL has committed",
        "outbox/delivery.py",
        "            outcome = self._apply(batch)\n",
        "            self._box.store.settle(Settlement(completed=[(record, b'') for record in batch.records]))\n"
        "            outcome = self._apply(batch)\n",
        ("tests/unit/test_relay_step.py", "tests/unit/test_relay_outage.py"),
    ),
    Bug(
        "a poison row is skipped",
        "outbox/delivery.py",
        "            else:\n                settlement.dead.append((record, str(error)))",
        "            else:\n                settlement.completed.append((record, b''))",
        ("tests/unit/test_relay_rejection.py",),
    ),
    Bug(
        "only lmdb.DiskError counts as a failed write",
        "outbox/environment.py",
        "= (lmdb.Error, OSError)",
        "= (lmdb.DiskError, OSError)",
        ("tests/faults/test_disk_errors.py", "tests/unit/test_box_halt.py"),
    ),
    Bug(
        "enqueueing goes on after EIO",
        "outbox/guarded.py",
        "        if self.halt_reason is not None:\n            raise DurabilityError(f\"enqueueing is halted",
        "        if False:\n            raise DurabilityError(f\"enqueueing is halted",
        ("tests/unit/test_box_halt.py", "tests/faults/test_disk_errors.py"),
    ),
    Bug(
        "after an in-doubt failure the caller is told another key",
        "outbox/box.py",
        "            hashed = idempotency_hash(self._namespace, name, \"key\", key.encode())",
        "            hashed = idempotency_hash(self._namespace, name, \"fresh\", key.encode())",
        ("tests/unit/test_box_halt.py", "tests/unit/test_box_enqueue.py"),
    ),
    Bug(
        "an outage counts as a retry",
        "outbox/delivery.py",
        "        plain = not (settlement.dead",
        "        if outcome.interruption is not None:\n"
        "            settlement.retried += [(record, 'outage') for record in batch.records]\n"
        "        plain = not (settlement.dead",
        ("tests/unit/test_relay_outage.py", "tests/unit/test_relay_step.py"),
    ),
    Bug(
        "receipts are committed before the effects",
        "outbox/lane.py",
        "        fresh = record(cursor, store_id, run)\n",
        "        fresh = record(cursor, store_id, run)\n        cursor.connection.commit()\n",
        ("tests/integration/test_postgres_target_batches.py", "tests/integration/test_postgres_target_rows.py"),
    ),
    Bug(
        "receipts are not looked at",
        "outbox/lane.py",
        "[item for item in run if item.seq in fresh], position)",
        "list(run), position)",
        ("tests/integration/test_postgres_target_batches.py", "tests/integration/test_postgres_target_rows.py"),
    ),
    Bug(
        "two relays of one store at a time",
        "outbox/delivery.py",
        "            self._role = RoleLock(self._box.path, Role.RELAY)",
        "            self._role = RoleLock(self._box.path, Role.ACCESS, shared=True)",
        ("tests/unit/test_relay_thread.py", "tests/unit/test_relay_step.py"),
    ),
    Bug(
        "relays of one store do not fence each other in PostgreSQL",
        "outbox/watermarks.py",
        "    if not taken:",
        "    if False:",
        ("tests/integration/test_postgres_target_connection.py", "tests/integration/test_postgres_target_batches.py"),
    ),
    Bug(
        "what PostgreSQL has forgotten is not noticed",
        "outbox/continuity.py",
        "    if not lost:",
        "    if True:",
        ("tests/unit/test_continuity.py", "tests/integration/test_reconcile.py"),
    ),
    Bug(
        "a transaction's number proves another history",
        "outbox/continuity.py",
        "same = self.session == mark.session and self.position",
        "same = self.position",
        ("tests/unit/test_continuity.py", "tests/integration/test_reconcile.py"),
    ),
    Bug(
        "to have reconciled proves what a copy of the store has not put back",
        "outbox/watermarks.py",
        "complete=self.loss is None",
        "complete=True",
        ("tests/integration/test_reconcile.py",),
    ),
    Bug(
        "a group that PostgreSQL has forgotten is put back in part",
        "outbox/reconcile.py",
        "                moving += unit\n",
        "                moving += [record for record in unit if record.seq in missing]\n",
        ("tests/integration/test_reconcile.py",),
    ),
    Bug(
        "the checksum covers the arguments only",
        "outbox/envelope.py",
        "zlib.crc32(memoryview(data)[_HEAD.size :], status) != crc",
        "False",
        ("tests/unit/test_envelope.py",),
    ),
    Bug(
        "a record is believed under another sequence number",
        "outbox/envelope.py",
        "    if own != seq:",
        "    if False:",
        ("tests/unit/test_envelope.py",),
    ),
    Bug(
        "a group may be split",
        "outbox/reading.py",
        "                if full and not (record.group and record.group == records[-1].group):",
        "                if full:",
        ("tests/unit/test_store_settling.py", "tests/unit/test_relay_step.py", "tests/unit/test_relay_rejection.py"),
    ),
    Bug(
        "a dead letter does not hold back its key",
        "outbox/scan.py",
        "        if any(self._dead.get(key, unit[0].seq) < unit[0].seq for key in keys):",
        "        if False:",
        ("tests/unit/test_relay_rejection.py",),
    ),
    Bug(
        "within a batch a refused row does not hold back its key",
        "outbox/lane.py",
        "                    blocked = behind if lenient else behind | ordering_keys(tried[0])",
        "                    blocked = behind",
        ("tests/integration/test_postgres_target_batches.py", "tests/integration/test_postgres_target_rows.py"),
    ),
    Bug(
        "an error that nobody has listed is a rejection for good",
        "outbox/failures.py",
        "_VERDICTS.get(sqlstate[:2]) or Verdict.UNKNOWN",
        "_VERDICTS.get(sqlstate[:2]) or Verdict.REJECTED",
        ("tests/unit/test_failures.py",),
    ),
    Bug(
        "a missing table is the entry's fault",
        "outbox/failures.py",
        '    "42": Verdict.MISCONFIGURED,',
        '    "42": Verdict.REJECTED,',
        ("tests/unit/test_failures.py",),
    ),
    Bug(
        "a silent connection is waited for",
        "outbox/watchdog.py",
        "            if self._monotonic() > deadline:",
        "            if False:",
        ("tests/unit/test_watchdog.py",),
    ),
    Bug(
        "synchronous_commit is what the server says",
        "outbox/connection.py",
        '"SET synchronous_commit = on; SET TIME ZONE',
        '"SET TIME ZONE',
        ("tests/integration/test_postgres_target_connection.py", "tests/integration/test_postgres_target_batches.py"),
    ),
    Bug(
        "what a handler sets holds for the commit",
        "outbox/lane.py",
        "        self._link.restore_settings(cursor_of(connection))\n",
        "",
        ("tests/integration/test_postgres_target_handlers.py",),
    ),
    Bug(
        "one ordering key is delivered on two lanes",
        "outbox/target.py",
        "            lane = lane_of[family.of(next(iter(own)))]",
        "            lane = unit[0].seq % lanes",
        ("tests/unit/test_spread.py",),
    ),
    Bug(
        "a batch that could not be recorded does not come again",
        "outbox/delivery.py",
        "            self._scan.distrust()\n            raise\n",
        "            raise\n",
        ("tests/unit/test_relay_overlap.py", "tests/unit/test_relay_outage.py"),
    ),
    Bug(
        "what was read beforehand counts as the end of the backlog",
        "outbox/scan.py",
        "        exhausted = fresh and (end or",
        "        exhausted = (end or",
        ("tests/unit/test_relay_overlap.py",),
    ),
    Bug(
        "a connection that is new is compared with what is recorded only",
        "outbox/continuity.py",
        "        newest = self._newest\n",
        "        newest: list[Mark] = []\n",
        ("tests/unit/test_continuity.py",),
    ),
    Bug(
        "somebody may write between a failed commit and its halt",
        "outbox/guarded.py",
        "            with self._turn:",
        "            if True:",
        ("tests/unit/test_box_halt.py",),
    ),
    Bug(
        "a data file that was taken away is written to",
        "outbox/guarded.py",
        "                        environment.check_in_place()\n                except",
        "                        pass\n                except",
        ("tests/unit/test_box_halt.py",),
    ),
    Bug(
        "dead letters are pruned with the rest",
        "outbox/ledger.py",
        "        if record.settled_us <= before_us and txn.get(DEAD_PREFIX + key) is None:",
        "        if record.settled_us <= before_us:",
        ("tests/unit/test_store_settling.py",),
    ),
    Bug(
        "a full store does not drain",
        "outbox/store.py",
        "        if not done:\n            raise failure",
        "        if True:\n            raise failure",
        ("tests/unit/test_store_settling.py", "tests/faults/test_full_disk.py"),
    ),
    Bug(
        "the relay's death is not told",
        "outbox/relay.py",
        '            self.died = f"{type(exc).__name__}: {exc}"\n',
        "            pass\n",
        ("tests/unit/test_relay_thread.py",),
    ),
    Bug(
        "a requeued dead letter comes behind later entries of its key",
        "outbox/scan.py",
        "        if peeked.releases != self._releases:",
        "        if False:",
        ("tests/unit/test_relay_rejection.py",),
    ),
    Bug(
        "a replay stamps its own time",
        "integrations/asof.py",
        "        self._times = True",
        "        self._times = False",
        ("tests/integration/adapter/test_outage.py",),
    ),
    Bug(
        "a replay takes new ids",
        "integrations/asof.py",
        '        self._id_left = notes.get("id")',
        "        self._id_left = None",
        ("tests/integration/adapter/test_outage.py",),
    ),
    Bug(
        "a method that answers False has succeeded",
        "integrations/operations.py",
        "    return result is not False and (result is not None or wrote)",
        "    return True",
        ("tests/integration/test_wiring.py",),
    ),
    Bug(
        "an unknown session has a balance of 0",
        "integrations/reads.py",
        "    return float(view.balance(_session(call, current)))",
        "    known = view.sessions.get(_session(call, current))\n    return float(known['balance']) if known else 0.0",
        ("tests/integration/adapter/test_outage.py",),
    ),
    Bug(
        "each call of a balance block is an entry of its own",
        "integrations/adapter.py",
        "        group = None if operation.best_effort else block",
        "        group = None",
        ("tests/integration/adapter/test_outage.py",),
    ),
    Bug(
        "another writer's balance is papered over",
        "integrations/replay.py",
        "        if self._diverged(entry, replica):",
        "        if False:",
        ("tests/integration/adapter/test_outage.py",),
    ),
    Bug(
        "adapter: replays stamp the time of the replay",
        "integrations/asof.py",
        "        return self._began_at <= value <= self._clock.now()",
        "        return False",
        ("tests/integration/adapter/test_property.py",),
    ),
    Bug(
        "adapter: what a crash leaves of a chunk of ids is given again",
        "integrations/id_reserve.py",
        "            self._ranges[0][0] = taken[-1] + 1\n        self._save()\n",
        "            self._ranges[0][0] = taken[-1] + 1\n",
        ("tests/integration/adapter/test_id_reserve.py",),
    ),
    Bug(
        "adapter: the id that the caller has is not used at the replay",
        "integrations/asof.py",
        "            setattr(row, attribute, self._id_left)",
        "            pass",
        ("tests/integration/adapter/test_nastier.py", "tests/integration/adapter/test_outage.py"),
    ),
    Bug(
        "adapter: a setting of one call reaches the next of the batch",
        "outbox/lane.py",
        "        self._link.restore_settings(cursor_of(connection))\n",
        "",
        ("tests/integration/adapter/test_nasty.py",),
    ),
    Bug(
        "adapter: a replayed method may open a connection of its own",
        "integrations/replay_session.py",
        "        if error is not None:\n            raise error",
        "        del error",
        ("tests/integration/adapter/test_nasty.py",),
    ),
    Bug(
        "adapter: a mere reader takes the rows of nested sessions with it",
        "integrations/replay_session.py",
        "        if self.wrote or not self.in_transaction() or _is_broken(self.get_bind()):",
        "        if True:",
        ("tests/integration/adapter/test_nasty.py",),
    ),
    Bug(
        "adapter: the view forgets what came after its checkpoint",
        "integrations/keeper.py",
        'for name in ("ledger", "pending"):',
        "for name in ():",
        ("tests/integration/adapter/test_nasty_lives.py", "tests/integration/adapter/test_property.py"),
    ),
    Bug(
        "adapter: the same intent after a crash is another call",
        "integrations/adapter.py",
        "        first = self.outbox.lookup(operation.name, bound) if operation.alternatives else None",
        "        first = None",
        ("tests/integration/adapter/test_nasty_lives.py",),
    ),
)  # fmt: skip
