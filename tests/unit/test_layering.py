"""Imports point one way. The tables below are the architecture; the tests only read them."""

from __future__ import annotations

import ast
from collections.abc import Collection
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The files and rooms of outbox/, in order: each may import only those before it.  `store` is a room: a folder.
LINE = [
    "errors",
    "log",
    "words",
    "clock",
    "worker",
    "entry",
    "records",
    "registered",
    "scalars",
    "codec",
    "results",
    "handlers",
    "operation",
    "config",
    "store",
    "rescue",
    "opening",
    "monitoring",
    "hooks",
    "calls",
    "enqueueing",
    "box",
    "transfer",
    "fate",
    "target",
    "postgres",
    "relay",
    "metrics",
    "otel",
    "audit",
    "__init__",
    "__main__",
]
# What each room may use of the other rooms.
ROOMS: dict[str, set[str]] = {
    "store": set(),
    "rescue": {"store"},
    "monitoring": {"store"},
    "transfer": {"store", "rescue", "monitoring"},
    "postgres": {"store"},
    "relay": {"store", "monitoring"},
}

# The files and rooms of integrations/, in order: each may import only those before it.
ADAPTER_LINE = [
    "roles",
    "plain_data",
    "sql_text",
    "code",
    "manager",
    "outage",
    "state",
    "ids",
    "view",
    "operations",
    "preflight",
    "replay",
    "upkeep",
    "calls",
    "binding",
    "adapter",
    "stand_in",
    "durable",
    "trading_engine",
    "paper",
    "__init__",
]

# Files that know nothing of the rest.
KNOW_NOBODY = ["errors", "words", "entry"]

# Who may import a library, and must. Imports that only the type checker sees do not count.
IMPORTERS = {
    "lmdb": {"store.environment"},
    "psycopg2": {
        "postgres.address",
        "postgres.connection",
        "postgres.handler_call",
        "postgres.lane",
        "postgres.piggyback",
    },
    "sqlalchemy": {"postgres.connection", "postgres.handler_call", "postgres.lane"},
    "orjson": {"codec"},
    "time": {"clock"},
    "random": {"clock"},
    "prometheus_client": {"metrics"},
    "opentelemetry": {"otel"},
}

# Imports by a call.
IMPORT_CALLS = ("import_module", "__import__")

# What stands above the line may import the line, and of its neighbours only these.
ABOVE: dict[str, set[str]] = {
    "testing": set(),
    "integrations": {"testing"},
    "cli": {"integrations", "testing"},
}
# `python -m outbox` is the command line.
DOORS = {("__main__", "cli")}


def name_of(node: ast.expr) -> str:
    """The last name of a dotted one; nothing where there is none."""
    return str(getattr(node, "attr", getattr(node, "id", "")))


@cache
def imports(source: str, package: str, *, typing_too: bool = True) -> frozenset[str]:
    """The absolute names that a file of `package` imports, with each name of a `from` import appended."""
    tree = ast.parse(source)
    skipped: set[ast.AST] = set()
    if not typing_too:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and name_of(node.test) == "TYPE_CHECKING":
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
        elif isinstance(node, ast.Call) and name_of(node.func).endswith(IMPORT_CALLS):
            found.update(one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str))
    return frozenset(found)


@cache
def line_files() -> dict[str, str]:
    """The files of outbox/ and its rooms by their dotted names, with their sources."""
    root = ROOT / "outbox"
    paths = [*root.glob("*.py"), *(path for room in ROOMS for path in (root / room).glob("*.py"))]
    names = {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}
    return {name: path.read_text(encoding="utf-8") for name, path in sorted(names.items())}


FILES = frozenset(line_files())


def place(name: str) -> str:
    """The room of a file, or the file itself."""
    return name.partition(".")[0]


def package_of(name: str) -> str:
    return f"outbox.{place(name)}" if place(name) in ROOMS else "outbox"


def line_neighbours(names: Collection[str]) -> set[str]:
    """The files of outbox/ behind these names; a name that is no file comes from its package's `__init__`."""
    neighbours = set()
    for name in names:
        first, *parts = name.split(".")
        if first != "outbox":
            continue
        inner = ".".join(parts[:2])
        if inner in FILES:
            neighbours.add(inner)
        else:
            neighbours.add(parts[0] if parts and parts[0] in {*LINE, *ABOVE} else "__init__")
    return neighbours


def test_every_file_of_the_line_is_in_the_table() -> None:
    assert sorted({place(name) for name in FILES} - set(LINE)) == []
    assert len(LINE) == len(set(LINE))
    folders = {path.parent.name for path in (ROOT / "outbox").glob("*/__init__.py")}
    assert sorted(folders - {*ROOMS, *ABOVE}) == []


@pytest.mark.parametrize("here", LINE)
def test_each_file_imports_only_those_before_it(here: str) -> None:
    wrong = []
    for name, source in line_files().items():
        if place(name) != here:
            continue
        for other in sorted(line_neighbours(imports(source, package_of(name)))):
            there = place(other)
            before = there in LINE and LINE.index(there) < LINE.index(here)
            arrow = here not in ROOMS or there not in ROOMS or there in ROOMS[here]
            if there != here and (here, there) not in DOORS and not (before and arrow):
                wrong.append(f"outbox.{name} imports outbox.{other}")
    assert wrong == []


@pytest.mark.parametrize("room", ROOMS)
def test_the_files_of_a_room_do_not_import_each_other_in_a_circle(room: str) -> None:
    files = {name: source for name, source in line_files().items() if place(name) == room}
    waiting = {name: line_neighbours(imports(source, package_of(name))) & set(files) for name, source in files.items()}
    while free := [name for name, others in waiting.items() if not others & set(waiting) - {name}]:
        for name in free:
            del waiting[name]
    assert waiting == {}


@cache
def adapter_imports() -> dict[str, set[str]]:
    """The files of integrations/ by their dotted names, with those that each needs when it runs."""
    root, base = ROOT / "integrations", "outbox.integrations"
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in root.rglob("*.py")}
    files = set(names.values())
    found: dict[str, set[str]] = {}
    for path, name in sorted(names.items()):
        package = ".".join([base, *path.relative_to(root).parent.parts])
        source = path.read_text(encoding="utf-8")
        inner = [one.removeprefix(f"{base}.") for one in imports(source, package, typing_too=False) if base in one]
        # A name is a file's, or something that a file or a package holds.
        holders = [(one, one.rpartition(".")[0], f"{one.rpartition('.')[0]}.__init__") for one in inner]
        found[name] = {next((one for one in three if one in files), "__init__") for three in holders} - {name}
    return found


def test_every_room_of_the_adapter_is_in_the_table() -> None:
    assert sorted({place(name) for name in adapter_imports()}) == sorted(ADAPTER_LINE)


@pytest.mark.parametrize("here", ADAPTER_LINE)
def test_each_file_of_the_adapter_imports_only_those_before_it(here: str) -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in adapter_imports().items()
        for other in sorted(others)
        if place(name) == here != place(other) and ADAPTER_LINE.index(place(other)) > ADAPTER_LINE.index(here)
    ]
    assert wrong == []


@pytest.mark.parametrize("room", [name for name in ADAPTER_LINE if (ROOT / "integrations" / name).is_dir()])
def test_the_files_of_an_adapter_room_import_in_no_circle(room: str) -> None:
    files = {name: others for name, others in adapter_imports().items() if place(name) == room}
    waiting = {name: others & set(files) for name, others in files.items()}
    while free := [name for name, others in waiting.items() if not others & set(waiting)]:
        for name in free:
            del waiting[name]
    assert waiting == {}


@pytest.mark.parametrize("name", KNOW_NOBODY)
def test_leaf_file_imports_no_other_file(name: str) -> None:
    source = line_files().get(name)
    if source is not None:
        assert line_neighbours(imports(source, "outbox")) == set()


@pytest.mark.parametrize("library", IMPORTERS)
def test_a_library_has_only_its_own_importers(library: str) -> None:
    files = line_files()
    found = {
        name
        for name, source in files.items()
        if library in source
        and any(one.split(".")[0] == library for one in imports(source, package_of(name), typing_too=False))
    }
    assert found == IMPORTERS[library] & set(files)


@pytest.mark.parametrize("name", ABOVE)
def test_folder_above_the_line_imports_only_downwards(name: str) -> None:
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
        ("from .store.envelope import Record", {"store.envelope"}),
        ("from .store import envelope", {"store.envelope"}),
        ("from . import codec, Outbox", {"codec", "__init__"}),
        ("import outbox.relay.relay as r", {"relay.relay"}),
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


_MOST_ATTRIBUTES = 20


def _attributes(cls: ast.ClassDef) -> set[str]:
    """The names that a class assigns to `self`, but for its properties."""
    stored = (node for node in ast.walk(cls) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    names = {node.attr for node in stored if isinstance(node.value, ast.Name) and node.value.id == "self"}
    return names - {node.name for node in cls.body if isinstance(node, ast.FunctionDef)}


def test_no_object_has_more_than_twenty_attributes() -> None:
    paths = [path for room in ("outbox", "integrations", "cli") for path in (ROOT / room).rglob("*.py")]
    classes = [
        (path.name, node.name, len(_attributes(node)))
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert len(classes) > 100
    assert [one for one in classes if one[2] > _MOST_ATTRIBUTES] == []
