"""Which tests judge the mutants of which module: its own, and the fast ones of those who rely on it."""

from __future__ import annotations

import sys
from pathlib import Path


def _unit(*names: str) -> tuple[str, ...]:
    return tuple(f"unit/test_{name}.py" for name in names)


_LIVES = ("simulation/test_simulation.py::test_simulated_lives_violate_nothing",)
_STORE = _unit("box_enqueue", "box_halt", "store_settling")
_RELAY = _unit("relay_step", "relay_outage", "relay_rejection")

_POSTGRES = tuple(
    f"integration/test_postgres_target_{name}.py" for name in ("batches", "rows", "handlers", "connection")
)

# What only a server can judge of who asks it.
_ORDERS = tuple(
    f"integration/test_reconcile.py::test_{name}"
    for name in ("a_loss_can_be_accepted_with_a_reason", "reconciling_twice_changes_nothing_more")
)

_HANDLER = "unit/test_writer.py"

# In the order of what a defect in them would cost.
PLAN = {
    "envelope": _unit("envelope", "envelope_frame", "envelope_counters", "store_settling", "quarantine"),
    "ledger": (*_unit("store_settling", "relay_rejection", "continuity"), *_LIVES),
    "store": (*_STORE, *_unit("store_append", "box_status", "store_vacuum", "quarantine", "relay_rejection"), *_LIVES),
    "box": (*_STORE, *_unit("box_looking", "box_status", "store_vacuum", "quarantine")),
    "appending": (*_STORE, *_unit("store_append", "store_append_rejected", "quarantine")),
    "writer": _unit("writer"),
    "gate": (*_unit("store_settling", "box_halt", "store_vacuum"), _HANDLER),
    "scan": (*_RELAY, *_unit("relay_overlap", "relay_parking"), *_LIVES),
    "delivery": (*_RELAY, *_unit("relay_thread", "relay_overlap")),
    "settling": (*_RELAY, *_unit("settling_refusals", "relay_parking", "relay_overlap")),
    "relay": (*_unit("relay_thread", "relay_overlap"), *_ORDERS),
    "worker": _unit("worker"),
    "connection": _POSTGRES,
    "lane": (*_POSTGRES, "integration/test_lanes.py", "integration/test_reconcile.py"),
    "blame": (*_POSTGRES, "integration/test_parking.py"),
    "postgres.target": (*_POSTGRES, "integration/test_lanes.py"),
    "receipts": _POSTGRES[:3],
    "codec": _unit("codec"),
    "link": _unit("link", "relay_outage"),
    "fate": _unit("fate", "relay_rejection", "relay_parking"),
    "target": _unit("target", "target_spread", "relay_step"),
    "operation": _unit("operation", "box_enqueue"),
    "quarantine": _unit("quarantine", "box_status"),
    "small": _unit("small_records", "store_settling", "environment", "quarantine", "importing"),
    "quota": _unit("box_halt", "store_append"),
    "rates": _unit("rates"),
    "notices": _unit("notices", "notices_alarms", "box_status"),
    "progress": _unit("progress", "relay_thread"),
    "opening": _unit("box_crash", "box_halt", "box_status", "store_vacuum", "verify"),
    "locks": _unit("locks", "box_crash"),
    "filesystem": _unit("filesystem", "environment"),
    "environment": _unit("environment", "store_settling", "store_vacuum", "box_halt", "quarantine"),
    "reads": _unit("store_reads", "store_settling", "relay_step", "quarantine"),
    "continuity": _unit("continuity"),
    "watermarks": ("integration/test_reconcile.py", "integration/test_postgres_target_batches.py"),
    "reconcile": ("integration/test_reconcile.py",),
    "pages": _unit("pages"),
    "entry_json": _unit("importing"),
    "importing": _unit("importing"),
    "salvage": _unit("importing", "pages"),
    "exporting": _unit("importing"),
    "verify": _unit("verify"),
    "findings": _unit("status", "box_status"),
    "status": _unit("status", "box_status", "box_looking", "relay_thread"),
    "config": _unit("config"),
    "own_files": _unit("own_files", "own_files_state"),
    "watchdog": _unit("watchdog"),
    "address": _unit("address", "address_login"),
    "clock": _unit("clock"),
}


def source(module: str) -> str:
    """The file of `outbox/` that is called so; one in a room may be named with its room."""
    root = Path(__file__).resolve().parents[2] / "outbox"
    name = f"{module.replace('.', '/')}.py"
    [path] = [root / name] if (root / name).exists() else root.glob(f"*/{name}")
    return str(path.relative_to(root.parent))


def judges(module: str) -> list[str]:
    """The test files of one module: those of its row, or those that are named after it.

    Raises `LookupError` if there are none.
    """
    planned = PLAN.get(module)
    if planned is not None:
        return [f"tests/{name}" for name in planned]
    root = Path(__file__).resolve().parents[1]
    named = sorted(root.rglob(f"test_{module}*.py"))
    if not named:
        raise LookupError(f"no test is named after {module!r}; with a row of their own: {', '.join(sorted(PLAN))}")
    return [str(path.relative_to(root.parent)) for path in named]


if __name__ == "__main__":
    try:
        sys.stdout.write("\n".join(judges(*sys.argv[1:])) + "\n")
    except (LookupError, TypeError) as error:
        sys.exit(f"make t T=<module>: {error}")
