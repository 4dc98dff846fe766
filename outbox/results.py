"""Results: what handlers returned, as JSON for the receipt and the ledger, and small records in the same form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .codec import MAX_DEPTH, encode, from_json, restored, to_json
from .errors import InvalidEntry

# The form of a result that JSON alone cannot express.
_WRAPPER = {"$value", "$types"}


def encode_result(value: Any) -> bytes:
    """JSON of what a handler returned: rows of a driver as dict or tuple, and the `repr` of what cannot be encoded.

    An effect that has been applied must not be rejected because of its return value.
    """
    try:
        plain, types = encode(value, what="result")
    except InvalidEntry:
        try:
            value = _ordinary(value)
            plain, types = encode(value, what="result")
        except Exception:  # noqa: BLE001 - containers of the host run code of their own
            plain, types = encode({"repr": _repr(value)}, what="result")
    if not types and not (isinstance(value, dict) and value.keys() == _WRAPPER):
        return plain
    return b'{"$value":' + plain + b',"$types":' + (types or b"null") + b"}"


def decode_result(data: bytes) -> Any:
    """The inverse of `encode_result`; unknown enum classes give their plain value."""
    value = from_json(data)
    if isinstance(value, dict) and value.keys() == _WRAPPER:
        return restored(value["$value"], to_json(value["$types"]), strict=False)
    return value


def _ordinary(value: Any, depth: int = 0) -> Any:
    """Mappings and sequences of other classes, such as rows of a driver, as dict, list and tuple."""
    if depth > MAX_DEPTH or isinstance(value, str | bytes | bytearray | memoryview | range):
        return value
    if isinstance(value, Mapping):
        return {key: _ordinary(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence):
        items = (_ordinary(item, depth + 1) for item in value)
        return list(items) if isinstance(value, list) else tuple(items)
    return value


def _repr(value: Any) -> str:
    """`repr(value)` as text that can be stored, whatever the class does."""
    try:
        text = repr(value)
    except Exception as exc:  # noqa: BLE001 - a foreign class's defect must not undo an applied effect
        text = f"<{type(value).__name__}, whose repr raises {type(exc).__name__}>"
    return text.replace("\0", "").encode("utf-8", "replace").decode()[:500]
