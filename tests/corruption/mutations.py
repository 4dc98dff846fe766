"""Ways to damage a store.  Each draws from a seeded generator and says what it did and which pages it touched."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .template import Template

Draw = random.Random
EVERY_PAGE = frozenset(range(1 << 12))
# The files beside the data file.
_LOCKS = ("lock.mdb", "engine.lock", "relay.lock", "access.lock", "opening.lock", "engine.state", "relay.state")


@dataclass(frozen=True)
class Damage:
    """What was done."""

    kind: str
    told: str
    # Pages of the data file that are not what they were.
    touched: frozenset[int] = frozenset()
    # Whether the data file holds what it held before, untouched pages included.
    same_file: bool = True


Mutation = Callable[[Template, Path, Draw], Damage]


def _write(directory: Path, offset: int, data: bytes) -> None:
    with (directory / "data.mdb").open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _page(template: Template, draw: Draw) -> tuple[str, int]:
    """A page of a tree that was drawn first, so that the few pages on which much hangs are met often."""
    tree = draw.choice([name for name, pages in template.trees.items() if pages])
    return tree, draw.choice(template.trees[tree])


def bit_flip(template: Template, directory: Path, draw: Draw) -> Damage:
    """One bit, anywhere in the file."""
    return _flip(template, directory, draw, 1, lambda: draw.randrange(len(template.data)))


def bit_flips(template: Template, directory: Path, draw: Draw) -> Damage:
    """A few bits, on pages that matter."""

    def place() -> int:
        _, page = _page(template, draw)
        return page * template.page_size + draw.randrange(template.page_size)

    return _flip(template, directory, draw, draw.randint(2, 12), place)


def bit_flip_in_head(template: Template, directory: Path, draw: Draw) -> Damage:
    """One bit of what LMDB keeps at the head of a page: its number, kind, bounds; or of a meta."""

    def place() -> int:
        _, page = _page(template, draw)
        return page * template.page_size + draw.randrange(160 if page < 2 else 32)

    return _flip(template, directory, draw, 1, place)


def bit_flip_in_row_head(template: Template, directory: Path, draw: Draw) -> Damage:
    """One bit of what LMDB keeps before each row of a page: the size of its value, its flags, the size of its key."""

    def place() -> int:
        _, page = _page(template, draw)
        at = page * template.page_size
        # The places of the rows stand behind the head of the page, whose `lower` tells where they end.
        places = range(at + 16, at + min(int.from_bytes(template.data[at + 12 : at + 14], sys.byteorder), 4096), 2)
        spot = draw.choice(places) if places else at
        row = int.from_bytes(template.data[spot : spot + 2], sys.byteorder)
        return at + (row + draw.randrange(8)) % template.page_size

    return _flip(template, directory, draw, 1, place)


def _flip(template: Template, directory: Path, draw: Draw, count: int, place: Callable[[], int]) -> Damage:
    data, touched = bytearray(template.data), set()
    for _ in range(count):
        at = place()
        data[at] ^= 1 << draw.randrange(8)
        touched.add(at // template.page_size)
    (directory / "data.mdb").write_bytes(data)
    return Damage("bit flip" if count == 1 else "bit flips", f"pages {sorted(touched)}", frozenset(touched))


def zeroed_pages(template: Template, directory: Path, draw: Draw) -> Damage:
    """Pages of zeros, of ones, or of noise."""
    touched = {_page(template, draw)[1] for _ in range(draw.choice((1, 1, 1, 2, 5)))}
    fill = draw.choice((b"\0", b"\xff", b""))
    for page in touched:
        content = fill * template.page_size or draw.randbytes(template.page_size)
        _write(directory, page * template.page_size, content)
    return Damage("zeroed or noisy pages", f"{fill!r} on {sorted(touched)}", frozenset(touched))


def torn_page(template: Template, directory: Path, draw: Draw) -> Damage:
    """Only some sectors of a page were written."""
    _, page = _page(template, draw)
    sector = draw.randrange(template.page_size // 512)
    earlier = (template.earlier / "data.mdb").read_bytes()
    at = page * template.page_size + sector * 512
    _write(directory, at, (earlier[at : at + 512] or b"").ljust(512, b"\0"))
    return Damage("torn page", f"sector {sector} of page {page} is older", frozenset({page}))


def swapped_pages(template: Template, directory: Path, draw: Draw) -> Damage:
    """Two pages lie in each other's place, or one in both."""
    size = template.page_size
    one, two = _page(template, draw)[1], _page(template, draw)[1]
    here, there = (template.data[page * size : (page + 1) * size] for page in (one, two))
    _write(directory, two * size, here)
    if draw.random() < 0.5:
        _write(directory, one * size, there)
        return Damage("swapped pages", f"{one} and {two}", frozenset({one, two} if one != two else ()))
    return Damage("misplaced page", f"{one} also at {two}", frozenset({two} if one != two else ()))


def lost_write(template: Template, directory: Path, draw: Draw) -> Damage:
    """A page that was never written: what is there is sound, and old."""
    _, page = _page(template, draw)
    size = template.page_size
    earlier = (template.earlier / "data.mdb").read_bytes()[page * size : (page + 1) * size].ljust(size, b"\0")
    changed = earlier != template.data[page * size : (page + 1) * size]
    _write(directory, page * size, earlier)
    return Damage("lost write", f"page {page}", frozenset({page} if changed else ()))


def truncated(template: Template, directory: Path, draw: Draw) -> Damage:
    """The end of the file is missing."""
    size = draw.randrange(len(template.data))
    if draw.random() < 0.5:
        size -= size % template.page_size
    os.truncate(directory / "data.mdb", size)
    touched = range(size // template.page_size, len(template.data) // template.page_size)
    return Damage("truncation", f"to {size} bytes", frozenset(touched))


def longer(template: Template, directory: Path, draw: Draw) -> Damage:
    """There is something behind the end, as after a crash while the file grew."""
    with (directory / "data.mdb").open("ab") as file:
        file.write(draw.randbytes(draw.randrange(1, 3 * template.page_size)))
    return Damage("bytes behind the end", "noise")


def missing_file(template: Template, directory: Path, draw: Draw) -> Damage:
    """One of the files is gone."""
    name = draw.choice(("data.mdb", "outbox.json", *_LOCKS))
    (directory / name).unlink(missing_ok=True)
    gone = name == "data.mdb"
    return Damage("missing file", name, EVERY_PAGE if gone else frozenset(), same_file=not gone)


def foreign_file(template: Template, directory: Path, draw: Draw) -> Damage:
    """One of the files is another store's, or something else altogether."""
    name = draw.choice(("data.mdb", "data.mdb", "outbox.json", *_LOCKS))
    contents: list[bytes] = [b"", b"SQLite format 3\0" + bytes(8000), draw.randbytes(20_000), b"{}\n", b"null"]
    if (template.foreign / name).exists():
        contents += [(template.foreign / name).read_bytes()] * 3
    (directory / name).write_bytes(draw.choice(contents))
    taken = name == "data.mdb"
    return Damage("foreign file", name, EVERY_PAGE if taken else frozenset(), same_file=not taken)


def old_format(template: Template, directory: Path, draw: Draw) -> Damage:
    """Another format version: of the identity file, inside the data file, of LMDB, or of some records."""
    where = draw.choice(("outbox.json", "identity", "lmdb", "records"))
    identity = (directory / "outbox.json").read_bytes()
    other = identity.replace(b'"format":1', b'"format":%d' % draw.choice((0, 2, 7)))
    assert other != identity
    if where == "outbox.json":
        (directory / "outbox.json").write_bytes(other)
        return Damage("old format", where)
    data = bytearray(template.data)
    places = [at for at in range(len(data)) if data.startswith(identity, at)] if where == "identity" else []
    if where == "lmdb":
        # The version stands behind LMDB's magic number, in both metas.
        for page in range(2):
            data[page * template.page_size + 20] = draw.choice((0, 2, 3, 9))
    elif where == "identity":
        for at in places:
            data[at : at + len(identity)] = other
    else:
        chosen = set(draw.sample(sorted(template.pages), 3))
        spots = [at for at in range(len(data)) if data.startswith(b"OX\x01", at)]
        places = [at for at in spots if int.from_bytes(data[at + 8 : at + 16], "big") in chosen]
        for at in places:
            data[at + 2] = 0
    (directory / "data.mdb").write_bytes(data)
    touched = {0, 1} if where == "lmdb" else {at // template.page_size for at in places}
    return Damage("old format", where, frozenset(touched))


# How often each is drawn.
MUTATIONS: tuple[tuple[Mutation, int], ...] = (
    (bit_flip, 20),
    (bit_flips, 10),
    (bit_flip_in_head, 15),
    (bit_flip_in_row_head, 10),
    (zeroed_pages, 12),
    (torn_page, 6),
    (swapped_pages, 10),
    (lost_write, 8),
    (truncated, 8),
    (longer, 1),
    (missing_file, 2),
    (foreign_file, 3),
    (old_format, 5),
)


def damage(template: Template, directory: Path, number: int) -> Damage:
    """Damage the copy in `directory` the way that belongs to `number`: the same in every run."""
    draw = Draw(number)
    mutations, weights = zip(*MUTATIONS, strict=True)
    mutation: Mutation = draw.choices(mutations, weights)[0]
    return mutation(template, directory, draw)
