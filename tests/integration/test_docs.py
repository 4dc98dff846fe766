"""The documents tell the truth: their code runs, their tables are complete, their links resolve."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import click
import pytest

import outbox
from outbox import ConfigError, Operation, Outbox, OutboxConfig, OutboxStatus, PostgresTarget, Relay, RelayStatus
from outbox.cli import atb
from outbox.config import variable_name
from outbox.monitoring.rates import Rates
from tests.unit.fakes.database import query
from tests.unit.fakes.waiting import LONG

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
COMMANDS_PAGE = REFERENCE / "commands.md"
ERRORS_PAGE = REFERENCE / "errors.md"
SETTINGS_PAGE = REFERENCE / "settings.md"
POSTGRESQL_PAGE = REFERENCE / "postgresql.md"
DOCUMENTS = [README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    """The fenced code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def without_blocks(document: Path) -> str:
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def section(document: Path, heading: str) -> str:
    """What stands below `heading`, up to the next heading of the same or a higher level."""
    level = heading.index(" ")
    found = re.search(
        rf"^{re.escape(heading)}$(.*?)(?=^#{{1,{level}}} |\Z)",
        document.read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    assert found is not None, f"{document.name} has no heading {heading!r}"
    return found[1]


def run(code: str, folder: Path, url: str) -> str:
    """The output of `code` run as a program in `folder`; it must succeed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**environment, "DATABASE_URL": url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- code


def test_the_example_of_the_readme_runs_twice(postgres_url: str, tmp_path: Path) -> None:
    (tables,), (example, _) = blocks(README, "sql"), blocks(README, "python")
    assert len(example.splitlines()) <= 21
    query(postgres_url, tables)
    promised = re.search(r"first run prints `(.*?)`.*prints `(.*?)`", README.read_text(encoding="utf-8"))
    assert promised is not None
    assert run(example, tmp_path, postgres_url) == f"{promised[1]}\n"
    assert run(example, tmp_path, postgres_url) == f"{promised[2]}\n"
    assert query(postgres_url, "SELECT client_order_id, price::text FROM trades ORDER BY 1") == [
        ("A-1", "64250.10000000"),
        ("A-2", "64250.10000000"),
    ]
    assert query(postgres_url, "SELECT count(*), min(fee)::text FROM fees") == [(2, "0.05000000")]


def test_the_answers_to_dead_letters_run(postgres_url: str, tmp_path: Path) -> None:
    query(postgres_url, "CREATE TABLE trades (number int CHECK (number < 100))")
    declared = [Operation("log_trade", table="trades", order_by="number")]
    with Outbox.open(tmp_path / "data" / "outbox", operations=declared) as box:
        for number in (1, 200, 300):
            box.enqueue("log_trade", {"number": number})
        assert Relay(box, PostgresTarget(postgres_url, declared)).drain(LONG)
    looking, answering = [code for code in blocks(REFERENCE / "delivery.md", "python") if "Outbox.attach" in code]
    assert [line.split()[:2] for line in run(looking, tmp_path, postgres_url).splitlines()] == [
        ["2", "log_trade"],
        ["3", "log_trade"],
    ]
    run(answering, tmp_path, postgres_url)
    with Outbox.attach(tmp_path / "data" / "outbox") as box:
        assert [entry.seq for entry in box.pending()] == [2]
        discarded = next(entry.error for entry in box.ledger() if entry.seq == 3)
        assert discarded is not None
        assert discarded.startswith("discarded: entered by hand")
        assert [entry.operation for entry in box.ledger() if entry.seq > 3] == ["outbox.requeue", "outbox.discard"]


def test_program_of_plain_sql_runs_as_before(postgres_url: str, tmp_path: Path) -> None:
    query(
        postgres_url,
        "CREATE TABLE fills (fill_id text PRIMARY KEY, symbol text, price numeric); "
        "CREATE TABLE positions (id uuid PRIMARY KEY, symbol text, exit_price numeric, closed_at timestamptz)",
    )
    _, after = blocks(DOCS / "how-to" / "plain-sql.md", "python")
    assert run(after, tmp_path, postgres_url) == "closed IBM\n"
    assert query(postgres_url, "SELECT * FROM fills") == [("F-1", "IBM", Decimal("187.25"))]
    assert query(postgres_url, "SELECT exit_price, closed_at IS NULL FROM positions") == [(Decimal("190.00"), False)]


def test_the_proof_for_other_servers_runs(postgres_url: str, tmp_path: Path) -> None:
    (proof,) = blocks(DOCS / "explanation" / "other-servers.md", "python")
    *proven, last = run(proof, tmp_path, postgres_url).splitlines()
    assert proven == [
        "every entry took effect once",
        "refused data is isolated",
        "receipts are unique",
        "relays are kept apart",
    ]
    assert last.startswith("it works with PostgreSQL ")


def test_the_proof_says_what_a_server_lacks(postgres_url: str, tmp_path: Path) -> None:
    """A lock function that keeps nobody out, as some servers have for compatibility."""
    (proof,) = blocks(DOCS / "explanation" / "other-servers.md", "python")
    query(
        postgres_url,
        "CREATE FUNCTION pg_try_advisory_xact_lock(int, int) RETURNS bool LANGUAGE sql AS 'SELECT true'; "
        f"ALTER ROLE CURRENT_USER IN DATABASE {postgres_url.rpartition('/')[2].partition('?')[0]} "
        "SET search_path = public, pg_catalog",
    )
    with pytest.raises(AssertionError, match="relays are not kept apart"):
        run(proof, tmp_path, postgres_url)


def test_all_python_of_the_documents_compiles() -> None:
    for document in DOCUMENTS:
        for number, code in enumerate(blocks(document, "python")):
            compile(code, f"{document.name} block {number}", "exec")


def raised() -> list[tuple[str, str]]:
    """`(class, pattern of the message)` of every error that the library makes, where both stand in one place."""
    found = []
    for path in sorted((ROOT / "outbox").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            message = node.args[0]
            parts = message.values if isinstance(message, ast.JoinedStr) else [message]
            texts = [str(part.value) if isinstance(part, ast.Constant) else None for part in parts]
            if sum(len(text or "") for text in texts) >= 8:
                pattern = "".join(".*" if text is None else re.escape(text) for text in texts)
                found.append((node.func.id, pattern))
    return found


def test_the_errors_are_those_that_are_raised() -> None:
    sentences = re.findall(r"`([A-Z][A-Za-z]+): (.*?)`", ERRORS_PAGE.read_text(encoding="utf-8"))
    known = raised()
    checked = 0
    for name, sentence in sentences:
        # What it ends with may be left out.
        classes = {
            kind
            for kind, pattern in known
            if hasattr(outbox.errors, kind) and any(re.fullmatch(pattern, sentence + end) for end in ("", ": ..."))
        }
        assert name in classes or not classes, f"`{sentence}` is a {' or '.join(classes)}, no {name}"
        checked += bool(classes)
    assert checked > 15


# What is raised to the relay, or names damage: the page says what to do.
WITHOUT_HINT = {
    "OutboxError", "StoreCorrupt", "DurabilityError", "EntryRejected", "TargetUnavailable", "TargetMisconfigured",
    "HistoryRewound", "ReceiptsGone", "OperationFault", "CallFailed", "Reject", "RetryLater",
}  # fmt: skip


def test_errors_of_calls_and_settings_have_a_hint() -> None:
    paths = [path for folder in ("outbox", "integrations", "cli") for path in (ROOT / folder).rglob("*.py")]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    kinds = {"OutboxError"}
    for _ in range(3):  # as deep as the classes are derived
        kinds |= {one.name for one in classes if {ast.unparse(base) for base in one.bases} & kinds}
    calls = [(path, node) for path, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = [(path, node) for path, node in calls if isinstance(node.func, ast.Name) and node.func.id in kinds]
    assert len(made) > 200
    without = [
        f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.func)}"
        for path, node in made
        if ast.unparse(node.func) not in WITHOUT_HINT and not {"hint", None} & {one.arg for one in node.keywords}
    ]
    assert without == []


def test_the_tables_are_the_ones_that_the_relay_makes(postgres_url: str, tmp_path: Path) -> None:
    prepared, *looks = blocks(POSTGRESQL_PAGE, "sql")
    columns = """SELECT column_name::text, data_type::text, is_nullable::text, column_default::text
        FROM information_schema.columns WHERE table_name IN ('outbox_receipts', 'outbox_watermarks')
        ORDER BY table_name, ordinal_position"""
    query(postgres_url, prepared.partition("GRANT")[0])
    by_hand = query(postgres_url, columns)
    query(postgres_url, "DROP TABLE outbox_receipts, outbox_watermarks; CREATE TABLE trades (number int)")
    operations = [Operation("log_trade", table="trades")]
    with Outbox.open(tmp_path / "outbox", operations=operations) as box:
        box.enqueue("log_trade", {"number": 1})
        assert Relay(box, PostgresTarget(postgres_url, operations)).drain(LONG)
    assert query(postgres_url, columns) == by_hand
    described = POSTGRESQL_PAGE.read_text(encoding="utf-8")
    for name, *_ in by_hand:
        assert re.search(rf"^\| (`\w+`, )?`{name}`[ ,]", described, re.MULTILINE), f"column {name} is not described"
    assert looks
    for look in looks:
        assert len(query(postgres_url, look)) == 1


# -- settings


def settings() -> dict[str, list[str]]:
    """The rows of the settings' table, by variable: variable, default, allowed, meaning."""
    rows = [
        re.split(r" \| ", line.strip("| "))
        for line in section(SETTINGS_PAGE, "## All settings").splitlines()
        if "|" in line
    ]
    return {row[0].strip("`"): row for row in rows[2:]}


@pytest.mark.parametrize("field", dataclasses.fields(OutboxConfig), ids=lambda field: field.name)
def test_every_setting_is_documented(field: dataclasses.Field[object]) -> None:
    _, default, allowed, meaning = settings()[variable_name(field.name)]
    shown = "true" if field.default is True else str(field.default)
    expected = "none" if field.default is None else f"`{shown}`"
    assert default == expected
    assert meaning
    bounds = re.match(r"([\d.]+) to ([\d.]+)\b(?! characters)", allowed)
    if bounds is None:
        assert field.type not in ("int", "float")
        return
    number = int if field.type == "int" else float
    # The two that are compared with each other get room.
    room = {"backoff_base": {"backoff_cap": 86_400.0}, "backoff_cap": {"backoff_base": 0.001}}.get(field.name, {})
    for text in bounds.groups():
        OutboxConfig(**{**room, field.name: number(text)})  # type: ignore[arg-type]
    low, high = (float(text) for text in bounds.groups())
    for beyond in (low - 1 if number is int else low - 0.0005, high + 1):
        with pytest.raises(ConfigError):
            OutboxConfig(**{**room, field.name: number(beyond)})  # type: ignore[arg-type]


def test_no_setting_is_documented_that_does_not_exist() -> None:
    assert list(settings()) == [variable_name(field.name) for field in dataclasses.fields(OutboxConfig)]


# -- commands


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """`command` and all below it, with the words that call them."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, f"{path} {name}")
    else:
        yield path, command


COMMANDS = dict(commands(atb, "atb"))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_is_documented(path: str) -> None:
    described = section(COMMANDS_PAGE, f"### {path}")
    for parameter in COMMANDS[path].params:
        if parameter.opts == ["--dir"]:
            continue
        for name in [*parameter.opts, *parameter.secondary_opts]:
            shown = name if name.startswith("-") else name.upper()
            assert re.search(rf"`{re.escape(shown)}\b", described), f"{path} {shown} is not documented"
    assert "Exit code" in described


def test_the_commands_without_the_shared_option_are_named() -> None:
    named = re.search(r"Every command but (.*) takes `--dir PATH`", COMMANDS_PAGE.read_text(encoding="utf-8"))
    assert named is not None
    without = [path for path, command in COMMANDS.items() if ["--dir"] not in [each.opts for each in command.params]]
    assert sorted(re.findall(r"`(\w+)`", named[1])) == sorted(path.split()[-1] for path in without)


def test_the_options_of_the_program_itself_are_documented() -> None:
    described = COMMANDS_PAGE.read_text(encoding="utf-8")
    for name in [name for parameter in atb.params for name in parameter.opts]:
        assert f"`atb {name}`" in described


def test_no_command_is_documented_that_does_not_exist() -> None:
    assert set(re.findall(r"^### (atb .*)$", COMMANDS_PAGE.read_text(encoding="utf-8"), re.MULTILINE)) == set(COMMANDS)


def called(text: str) -> list[tuple[str, list[str]]]:
    """Every `atb outbox NAME` of a text with the options that stand behind it on its line."""
    found = re.findall(r"atb outbox ([a-z][a-z-]*)\b([^`|#\n]*)", text)
    return [(name, re.findall(r"(?<!\S)(--[a-z][a-z-]*)", rest)) for name, rest in found]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_call_in_a_document_names_options_that_exist(document: Path) -> None:
    for name, options in called(document.read_text(encoding="utf-8")):
        command = COMMANDS.get(f"atb outbox {name}")
        assert command is not None, name
        known = {one for parameter in command.params for one in parameter.opts} | {"--help"}
        assert set(options) <= known, (name, options)


def test_every_field_of_the_status_is_documented() -> None:
    described = section(REFERENCE / "status.md", "## All fields")
    names = [field.name for field in dataclasses.fields(OutboxStatus) if field.name not in ("relay", "rates")]
    names += [f"rates.{field.name}" for field in dataclasses.fields(Rates)]
    names += [f"relay.{field.name}" for field in dataclasses.fields(RelayStatus)] + ["breaker", "health"]
    assert [name for name in names if f"`{name}`" not in described] == []


# -- names and links


def test_every_file_of_the_line_is_described() -> None:
    described = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    paths = [path.relative_to(ROOT / "outbox") for path in sorted((ROOT / "outbox").rglob("*.py"))]
    rooms = [path for path in paths if path.parts[0] not in ("testing", "cli", "integrations")]
    files = [str(path) for path in rooms if path.name != "__init__.py" or path.parent == Path()]
    assert [name for name in files if f"| `{name}` |" not in described] == []


def test_every_error_is_described() -> None:
    # Seen by the relay only: users meet their text, without their name.  The last two are raised by users.
    inner = {"OutboxError", "EntryRejected", "TargetMisconfigured", "TargetUnavailable", "Reject", "RetryLater"}
    public = {name for name in outbox.__all__ if isinstance(getattr(outbox, name), type)}
    errors = {name for name in public if issubclass(getattr(outbox, name), Exception)}
    text = ERRORS_PAGE.read_text(encoding="utf-8")
    assert sorted(name for name in errors - inner if name not in text) == []


def anchors(document: Path) -> set[str]:
    """The anchors that a heading gets on the usual sites."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_of_a_document_resolve(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(document)):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_row_of_a_table_is_one_line(document: Path) -> None:
    """Markdown ends a table at a line without a bar: a wrapped row shows its rest as a paragraph below the table."""
    lines = without_blocks(document).splitlines()
    assert [line for line in lines if line.startswith("|") and not line.rstrip().endswith("|")] == []


def test_every_test_that_a_document_names_exists() -> None:
    text = (DOCS / "explanation" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 15
    assert [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text()] == []
