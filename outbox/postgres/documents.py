"""Documents: an entry's values as `json.dumps` writes them, where the store keeps another form.

The store keeps an integer of more than 64 bits as a text, and a dict with keys that are no texts as a list of pairs.
Both restore exactly, and neither is what a JSON column should hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import codec
from ..store.envelope import Record

# Tags of the two forms, as JSON; an argument of that name makes no difference but time.
_OTHER_FORMS = (b'"int"', b'"pairs"')
_WORDS = {True: "true", False: "false", None: "null"}


def json_of(records: Sequence[Record]) -> str:
    """A JSON array with an object of the arguments for each record."""
    return (b"[" + b",".join(_document(one) for one in records) + b"]").decode()


def _document(record: Record) -> bytes:
    if not any(form in record.types for form in _OTHER_FORMS):
        return record.args
    try:
        return codec.to_json(_value(codec.from_json(record.args), codec.from_json(record.types)))
    except codec.MALFORMED as exc:
        raise codec.malformed(exc) from exc


def _value(plain: Any, tag: Any) -> Any:
    tag = codec.tag_within(tag[2] if isinstance(tag, list) and tag[0] == "record" else tag)
    if tag == "int":
        return codec.raw_json(plain.encode())
    if not isinstance(tag, dict):
        return plain
    ((name, marks),) = tag.items()
    if name == "dict":
        return {key: _value(item, marks.get(key)) for key, item in plain.items()}
    items = [_value(item, marks.get(str(index))) for index, item in enumerate(plain)]
    if name != "pairs":
        return items
    texts = [_key(pair[0]) for pair in plain]
    keys = [text for text in texts if text is not None]
    if len({*keys}) < len(plain):
        # A tuple has no text, and of two equal texts an object would keep one.
        return items
    values = {key: value for key, (_, value) in zip(keys, items, strict=True)}
    return {key: values[key] for key in sorted(values)}


def _key(key: Any) -> str | None:
    """The text of a dict's key; None where it has none.  Dates, decimals and the like are stored as texts."""
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool):
        return _WORDS[key]
    return repr(key) if isinstance(key, int | float) else None
