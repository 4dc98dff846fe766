"""What is imported when: names of the package and commands load what they need, at their first use."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import outbox
from outbox import Outbox

HEAVY = {"lmdb", "orjson", "sqlalchemy", "psycopg2", "rich", "click", "asyncio"}

LOADED = """
import json, sys
before = set(sys.modules)
{code}
print("\\n" + json.dumps(sorted(set(sys.modules) - before)), file=sys.stderr)
"""


def loaded(code: str, *arguments: str) -> set[str]:
    """The modules that `code` imports in a fresh interpreter."""
    command = [sys.executable, "-c", LOADED.format(code=code), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_import_of_the_package_loads_no_library() -> None:
    assert HEAVY & loaded("import outbox") == set()


@pytest.mark.slow
def test_an_engine_that_only_enqueues_loads_no_sqlalchemy() -> None:
    found = loaded("from outbox import Outbox, Operation, OutboxConfig, DurabilityError")
    assert "lmdb" in found
    assert {"sqlalchemy", "psycopg2", "asyncio"} & found == set()


@pytest.mark.slow
def test_status_loads_only_what_it_shows(tmp_path: Path) -> None:
    """Monitoring calls the command every few seconds: SQLAlchemy, the demo and rich took three quarters of its time."""
    Outbox.open(tmp_path / "store").close()
    code = (
        "from outbox.cli import main\ntry:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code"
    )
    found = loaded(code, "outbox", "status", "--dir", str(tmp_path / "store"))
    assert {"lmdb", "click", "outbox.cli.status"} <= found
    assert {"sqlalchemy", "psycopg2", "rich", "asyncio"} & found == set()
    commands = {name for name in found if name.startswith("outbox.cli.")}
    shared = {"outbox.cli.group", "outbox.cli.loading", "outbox.cli.common", "outbox.cli.signals"}
    assert commands == {*shared, "outbox.cli.status"}
    assert [name for name in found if name.startswith(("outbox.integrations", "outbox.testing"))] == []


def test_every_public_name_is_the_one_that_type_checkers_see() -> None:
    assert outbox.__file__ is not None
    tree = ast.parse(Path(outbox.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {
        alias.name: f"outbox.{node.module}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == sorted(outbox.__all__)
    assert seen == {name: getattr(outbox, name).__module__ for name in outbox.__all__}


def test_all_public_names_are_listed_and_others_are_unknown() -> None:
    assert set(outbox.__all__) <= set(dir(outbox))
    with pytest.raises(AttributeError, match="module 'outbox' has no attribute 'Nonsense'"):
        outbox.Nonsense  # noqa: B018 - looking is the test


@pytest.mark.slow
@pytest.mark.parametrize("first", ["group", "mount", "status"])
def test_entry_point_stays_one_whatever_is_imported_first(first: str) -> None:
    """A host that mounts the commands may import them by the modules that define them."""
    code = f"import outbox.cli.{first}\nfrom outbox.cli import main\nassert callable(main), main"
    assert f"outbox.cli.{first}" in loaded(code)
