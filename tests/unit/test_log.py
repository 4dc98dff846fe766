"""Each log message carries its facts in its text, too: an operator with `logging.basicConfig()` reads them."""

from __future__ import annotations

import ast
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from outbox import Outbox, StoreFull, TargetMisconfigured, TargetUnavailable
from outbox.log import Log, without_password
from outbox.store.envelope import Record
from tests.unit.fakes.rig import Rig, passing, permanent

ROOT = Path(__file__).resolve().parents[2]
_PLACE = re.compile(r"%\((\w+)\)")
_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}
_ONCE = "self._repeated.warn"
_LEVELS = {"debug", "info", "warning", "error", "critical"}


def _files() -> Iterator[Path]:
    for folder in ("outbox", "integrations", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            # The paper engine stands for a host, and its messages have no fields.
            if "paper" not in path.parts and path.name != "log.py":
                yield path


def _calls(source: str) -> Iterator[ast.Call]:
    """Calls of the logger, of a local `log` that is one of its methods, and of warnings that are logged once."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        made = ast.unparse(node.func)
        if made in ("log", _ONCE) or (made.startswith("_log.") and made.removeprefix("_log.") in _LEVELS):
            yield node


@pytest.mark.slow
def test_each_fact_of_a_message_is_in_its_text() -> None:
    seen, wrong = 0, []
    for path in _files():
        for call in _calls(path.read_text(encoding="utf-8")):
            seen += 1
            *subject, message = call.args
            assert len(subject) == (ast.unparse(call.func) == _ONCE)
            text = message.value if isinstance(message, ast.Constant) else None
            named = {keyword.arg for keyword in call.keywords} - {"trace"}
            # Facts of a mapping cannot be seen here; the log would raise for a placeholder without one.
            if not isinstance(text, str) or (None not in named and set(_PLACE.findall(text)) != named):
                wrong.append(f"{path.name}:{call.lineno}")
    assert wrong == []
    assert seen > 50


def test_only_one_file_makes_log_records() -> None:
    plain = re.compile(r"_log = logging\.getLogger|extra=\{|exc_info=")
    assert [path.name for path in _files() if plain.search(path.read_text(encoding="utf-8"))] == []


def shown(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages from WARNING on, once it is certain that each holds the values of its fields."""
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
    for record in loud:
        text = record.getMessage()
        fields = {name: value for name, value in record.__dict__.items() if name not in _PLAIN}
        assert [name for name, value in fields.items() if str(value) not in text] == [], text
        assert "%(" not in text
    return [record.getMessage() for record in loud]


def test_failed_delivery_says_why_and_when_it_is_tried_again(
    outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Rig(outbox_dir, backoff_base=3.2, backoff_cap=3.2) as rig:
        caplog.clear()  # of what the opening says where the folder is in memory
        rig.clock.jitter = 1.0
        rig.enqueue("a")
        rig.target.down = TargetUnavailable("connection refused")
        rig.relay.step(rig.clock.monotonic())
    assert shown(caplog) == ["delivery failed: connection refused (next try in 3.2 s)"]


def _divide(records: Sequence[Record]) -> None:
    raise ZeroDivisionError(f"division of {len(records)} by zero")


def test_trouble_of_every_kind_is_in_the_text(outbox_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Rig(outbox_dir, max_retries=1) as rig:
        bad, unlucky = rig.enqueue("a", "b")
        rig.target.refuse = {bad: permanent("23505: duplicate key"), unlucky: passing("P0001: not now")}
        rig.enqueue("c", operation="book")
        rig.target.broken["book"] = TargetMisconfigured("table 'books' does not exist")
        rig.settle()
        rig.run(60)
        rig.target.before = _divide
        rig.enqueue("d")
        rig.settle()
        rig.target.before = None
        rig.box.store._latch("enqueue", OSError(5, "Input/output error"))
    said = "\n".join(shown(caplog))
    for fact in ("23505: duplicate key", "P0001: not now", "'books' does not exist", "division of 1 by zero"):
        assert fact in said
    assert "Input/output error" in said


def test_discarded_entry_is_logged_below_warning(outbox_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It was given up on purpose, by an operator or for a caller who got the refusal."""
    with Rig(outbox_dir) as rig, caplog.at_level(logging.INFO, "outbox"):
        [bad] = rig.enqueue("a")
        rig.target.refuse = {bad: permanent("23505: duplicate key")}
        rig.settle()
        rig.box.discard(bad, "told")
    [record] = [one for one in caplog.records if "was discarded" in one.getMessage()]
    assert record.levelno == logging.INFO
    assert f"entry {bad} was discarded" in record.getMessage()


def test_passwords_are_in_neither_text_nor_fields(caplog: pytest.LogCaptureFixture) -> None:
    url = "postgresql://bot:s3cret@db/trades?password=s3cret"
    Log("outbox.test").error("cannot connect: %(error)s", error=StoreFull(f"{url} is away"))
    [record] = caplog.records
    assert "s3cret" not in record.getMessage() + record.__dict__["error"]
    assert "bot:***@db" in record.getMessage()
    assert without_password("password='a b' host=db") == "password=*** host=db"


def test_record_names_the_file_that_logs(caplog: pytest.LogCaptureFixture) -> None:
    Log("outbox.test").warning("100 % done")
    assert (caplog.records[0].filename, caplog.records[0].getMessage()) == ("test_log.py", "100 % done")


class _Away(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise ConnectionError("the log service is away")


class _Mute:
    def __str__(self) -> str:
        raise RuntimeError("a defect of the class")


def test_logging_handler_that_raises_ends_no_caller(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger("outbox"), "handlers", [_Away()])
    with Outbox.open(outbox_dir) as box:
        box.enqueue("note", {"n": 1})
        Log("outbox.relay").error("the end is near: %(why)s", why="a test")
    assert "the log service is away" in capsys.readouterr().err


def test_fact_that_cannot_be_shown_ends_no_caller(capsys: pytest.CaptureFixture[str]) -> None:
    Log("outbox.relay").error("the end is near: %(why)s", why=_Mute())
    assert "a defect of the class" in capsys.readouterr().err


def test_logging_handler_that_raises_without_stderr_ends_no_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("outbox"), "handlers", [_Away()])
    monkeypatch.setattr(sys, "stderr", None)
    Log("outbox.relay").error("the end is near: %(why)s", why="a test")


def test_handler_that_causes_the_same_message_ends() -> None:
    """It writes log records by a manager whose outbox is halted, which logs that the call was not recorded."""
    log, seen = Log("outbox.test_again"), []

    class Writing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())
            log.warning("a call of %(operation)s was not recorded", operation="log_event")

    handler, logger = Writing(), logging.getLogger("outbox.test_again")
    logger.addHandler(handler)
    try:
        for _ in range(2):
            log.warning("the relay has stopped")
    finally:
        logger.removeHandler(handler)
    assert seen == ["the relay has stopped", "a call of log_event was not recorded"] * 2


def test_fact_that_is_no_valid_unicode_is_logged_with_its_codes(caplog: pytest.LogCaptureFixture) -> None:
    """As the name of a file in another encoding: a log file takes no lone surrogate, and the message was gone."""
    Log("outbox.test").warning("no file %(file)s", file="caf\udce9")
    assert caplog.messages == ["no file caf\\udce9"]
