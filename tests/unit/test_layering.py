"""Imports point one way. The tables below are the architecture; the tests only read them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The files of outbox/, in order: each may import only those before it.
LINE = [
    "errors",
    "clock",
    "entry",
    "codec",
    "operation",
    "config",
    "envelope",
    "continuity",
    "counters",
    "state_file",
    "locks",
    "pages",
    "filesystem",
    "environment",
    "group_commit",
    "exchange",
    "small",
    "ledger",
    "quarantine",
    "guarded",
    "reading",
    "quota",
    "store",
    "salvage",
    "verify",
    "recovery",
    "opening",
    "restore",
    "status",
    "snapshot",
    "alarms",
    "progress",
    "box",
    "failures",
    "login_probe",
    "breaker",
    "receipts",
    "target",
    "watermarks",
    "watchdog",
    "connection",
    "lane",
    "worker",
    "postgres",
    "scan",
    "reconcile",
    "delivery",
    "relay",
    "__init__",
    "__main__",
]

# Files that know nothing of the rest.
KNOW_NOBODY = ["errors", "entry"]

# Who may import a library, and must. Imports that only the type checker sees do not count.
IMPORTERS = {
    "lmdb": {"environment"},
    "psycopg2": {"connection", "lane"},
    "sqlalchemy": {"connection", "lane"},
    "orjson": {"codec"},
    "time": {"clock"},
    "random": {"clock"},
}

# What stands above the line may import the line, and of its neighbours only these.
ABOVE: dict[str, set[str]] = {
    "testing": set(),
    "integrations": {"testing"},
    "cli": {"integrations", "testing"},
}
# `python -m outbox` is the command line.
DOORS = {("__main__", "cli")}


def imports(source: str, package: str, *, typing_too: bool = True) -> set[str]:
    """The absolute names that a file of `package` imports, with each name of a `from` import appended."""
    tree = ast.parse(source)
    skipped: set[ast.AST] = set()
    if not typing_too:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
                skipped.update(inner for statement in node.body for inner in ast.walk(statement))
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found.update(one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str))
    return found


def line_neighbours(names: set[str]) -> set[str]:
    """The files of outbox/ behind these names; a name that is no file comes from the package's `__init__`."""
    neighbours = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "outbox":
            second = parts[1] if len(parts) > 1 else "__init__"
            neighbours.add(second if second in {*LINE, *ABOVE} else "__init__")
    return neighbours


def line_files() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "outbox").glob("*.py"))}


def test_every_file_of_the_line_is_in_the_table() -> None:
    assert sorted(set(line_files()) - set(LINE)) == []
    assert len(LINE) == len(set(LINE))


def test_each_file_imports_only_those_before_it() -> None:
    wrong = []
    for name, source in line_files().items():
        for other in sorted(line_neighbours(imports(source, "outbox"))):
            allowed = (name, other) in DOORS or (
                other in LINE and name in LINE and LINE.index(other) < LINE.index(name)
            )
            if not allowed:
                wrong.append(f"outbox/{name}.py imports outbox.{other}")
    assert wrong == []


@pytest.mark.parametrize("name", KNOW_NOBODY)
def test_knows_nobody(name: str) -> None:
    source = line_files().get(name)
    if source is not None:
        assert line_neighbours(imports(source, "outbox")) == set()


@pytest.mark.parametrize("library", IMPORTERS)
def test_a_library_has_only_its_own_importers(library: str) -> None:
    files = line_files()
    found = {
        name
        for name, source in files.items()
        if any(one.split(".")[0] == library for one in imports(source, "outbox", typing_too=False))
    }
    assert found == IMPORTERS[library] & set(files)


@pytest.mark.parametrize("name", ABOVE)
def test_what_stands_above_imports_downwards(name: str) -> None:
    root = ROOT / "outbox" / "testing" if name == "testing" else ROOT / name
    wrong = []
    for path in sorted(root.rglob("*.py")):
        package = ".".join(["outbox", name, *path.relative_to(root).parent.parts])
        others = line_neighbours(imports(path.read_text(encoding="utf-8"), package))
        wrong += [
            f"{path.relative_to(ROOT)} imports outbox.{other}"
            for other in sorted(others & set(ABOVE) - {name} - ABOVE[name])
        ]
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "neighbours"),
    [
        ("import time", set()),
        ("from datetime import time", set()),
        ("from .store import Store", {"store"}),
        ("from . import codec, Outbox", {"codec", "__init__"}),
        ("import outbox.relay as r", {"relay"}),
        ("from outbox.cli import main", {"cli"}),
        ("from outbox import Outbox", {"__init__"}),
        ("from .testing.postgres_server import PostgresServer", {"testing"}),
        ("def late():\n    from .box import Outbox", {"box"}),
        ("importlib.import_module('outbox.cli')", {"cli"}),
    ],
)
def test_imports_are_recognised(source: str, neighbours: set[str]) -> None:
    assert line_neighbours(imports(source, "outbox")) == neighbours


def test_imports_for_the_type_checker_can_be_left_out() -> None:
    source = "import lmdb\nif TYPE_CHECKING:\n    from sqlalchemy import Connection\n"
    assert imports(source, "outbox") == {"lmdb", "sqlalchemy.Connection"}
    assert imports(source, "outbox", typing_too=False) == {"lmdb"}


def test_relative_imports_of_a_folder_above_are_resolved() -> None:
    assert imports("from .engine import Engine", "outbox.integrations.paper") == {
        "outbox.integrations.paper.engine.Engine"
    }
    assert imports("from ..durable import Durable", "outbox.integrations.paper") == {
        "outbox.integrations.durable.Durable"
    }
    assert imports("from .. import Outbox", "outbox.cli") == {"outbox.Outbox"}
