"""The log of `atb outbox relay`: lines of text or JSON, a line for each batch, nothing for entries."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest

from outbox import TargetUnavailable
from outbox.cli.log_lines import logging_to_stderr
from outbox.log import Log
from outbox.relay.delivery import Delivery
from tests import atb as command_line
from tests.unit.fakes.rig import Rig, passing, permanent

_LOG = Log("outbox.test")


def objects(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_line_has_the_fields_of_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr("json"):
        _LOG.warning("entry %(seq)s of %(operation)r: %(error)s", seq=7, operation="note", error="a\nb")
    (line,) = objects(capsys)
    assert str(line.pop("time")).endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "outbox.test",
        "message": "entry 7 of 'note': a\nb",
        "seq": 7,
        "operation": "note",
        "error": "a\nb",
    }


def test_json_line_of_an_error_has_its_traceback_and_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr("json"):
        try:
            raise ValueError("postgresql://u:s3cret@h/d")
        except ValueError:
            _LOG.error("it failed", trace=True)
        logging.getLogger("host").error("password=s3cret")
        logging.getLogger("host").error("tried", extra={"urls": ["postgresql://u:s3cret@h/d"]})
    first, *others = objects(capsys)
    assert str(first["traceback"]).endswith("ValueError: postgresql://u:***@h/d")
    assert [line["message"] for line in others] == ["password=***", "tried"]
    assert "s3cret" not in str([first, *others])


def test_warnings_of_python_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr("json"), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = objects(capsys)
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")


def test_text_line_has_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr():
        _LOG.info("at postgresql://u:s3cret@h/d")
        _LOG.debug("unseen")
    assert capsys.readouterr().err.rstrip().endswith(" INFO outbox.test: at postgresql://u:***@h/d")


def test_level_is_that_of_the_library_only(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr("json", "debug"):
        _LOG.debug("ours")
        logging.getLogger("host").info("theirs")
    with logging_to_stderr("json", "error"):
        _LOG.warning("unseen")
    _LOG.info("after")
    assert [line["message"] for line in objects(capsys)] == ["ours"]


# -- a line for each batch


def test_a_batch_is_one_debug_line(outbox_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Rig(outbox_dir, batch_size=4) as rig, logging_to_stderr("json", "debug"):
        rig.enqueue(*"abcdef")
        rig.target.refuse = {2: permanent(), 3: passing()}
        rig.settle()
        rig.settle()
    found = [line for line in objects(capsys) if str(line["message"]).startswith("batch of ")]
    facts = ("claimed", "first", "last", "delivered", "rejected", "waiting")
    assert [tuple(line[name] for name in facts) for line in found[:2]] == [(4, 1, 4, 2, 2, 0), (2, 5, 6, 2, 0, 0)]
    assert found[1]["settled"] == "now"
    assert isinstance(found[0]["took_ms"], float)


def test_a_relay_with_nothing_to_do_is_silent(outbox_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Rig(outbox_dir) as rig, logging_to_stderr("json", "debug"):
        for _ in range(10):
            rig.settle()
    assert objects(capsys) == []


def test_each_try_of_an_outage_is_a_debug_line(outbox_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Rig(outbox_dir) as rig, logging_to_stderr("json", "debug"):
        rig.enqueue("a")
        rig.target.down = TargetUnavailable("connection refused")
        rig.run(60)
    lines = objects(capsys)
    tries = [(line["level"], str(line["message"]).partition(":")[0]) for line in lines if "delivery" in str(line)]
    assert tries[:2] == [("warning", "delivery failed"), ("debug", "delivery failed again")]
    assert set(tries[1:]) == {("debug", "delivery failed again")}


def test_without_debug_no_facts_are_gathered(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig(outbox_dir) as rig, logging_to_stderr():
        monkeypatch.setattr(Delivery, "_describe", None)
        rig.enqueue("a")
        rig.settle()
        assert rig.target.applied == [1]


# -- options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--log-format", "xml"), "'xml' is not one of 'text', 'json'"),
        (("--log-level", "loud"), "'loud' is not one of 'debug', 'info'"),
        (("--verbose", "--log-level", "error"), "--verbose contradicts --log-level error"),
    ],
)
def test_a_wrong_option_is_one_sentence(outbox_dir: Path, arguments: tuple[str, ...], words: str) -> None:
    done = command_line.invoke("relay", "--dir", str(outbox_dir), *arguments)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_error_is_a_line_of_the_log_format(outbox_dir: Path, form: str) -> None:
    done = command_line.invoke("relay", "--dir", str(outbox_dir), "--log-format", form, OUTBOX_NONSENSE="1")
    assert done.exit_code == 2
    *_, last = done.stderr.splitlines()
    if form == "text":
        assert last.startswith("Error: ")
    else:
        levels = [json.loads(line)["level"] for line in done.stderr.splitlines()]
        assert levels == ["warning", "critical"]
    assert "there is no outbox" in last
