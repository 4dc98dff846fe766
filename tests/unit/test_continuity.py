"""Whether a database still has everything that it acknowledged: decided by its rows and by what the store remembers."""

from __future__ import annotations

import zlib
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from outbox.errors import StoreCorrupt
from outbox.relay.settling import Ahead
from outbox.store.continuity import UNKNOWN, Mark, NoMemory, RelaySessions, Watermark, fingerprint, judge, lineage_of

HERE, S1, S2 = uuid4(), uuid4(), uuid4()
MARK = Mark(HERE, S1, 50)
ROW = Watermark(0, HERE, S1, 50, None, 400)


def row(session: UUID, position: int, follows: tuple[UUID, int] | None = None, lane: int = 0) -> Watermark:
    return replace(ROW, session=session, position=position, follows=follows, lane=lane)


@pytest.mark.parametrize(
    "shown",
    [
        row(S1, 50),
        row(S1, 51),  # the reply to the last COMMIT was lost
        row(S2, 1, (S1, 50)),  # and so was that to the first of the next session
        row(S2, 9, (S1, 50)),
    ],
)
def test_database_with_the_remembered_mark_has_lost_nothing(shown: Watermark) -> None:
    assert judge([MARK], [shown]) is None


@pytest.mark.parametrize(
    "shown",
    [
        row(S1, 49),
        row(S2, 60),  # another history counted on
        row(S2, 60, (S1, 49)),
        row(S2, 60, (S1, 51)),
        row(S1, 50, lane=1),
    ],
)
def test_database_behind_the_remembered_mark_is_a_loss(shown: Watermark) -> None:
    loss = judge([MARK], [shown])
    assert loss is not None
    assert (loss.settled_seq, loss.same_database) == (400, True)


def test_the_old_server_comes_back() -> None:
    """It has 60 of the old session; the new one, which followed 50, is unknown to it."""
    assert judge([Mark(HERE, S2, 3)], [row(S1, 60)]) is not None


def test_a_store_that_was_never_told_anything_misses_nothing() -> None:
    assert judge(NoMemory().marks(), []) is None
    assert judge(NoMemory().marks(), [ROW]) is None
    assert NoMemory().watermark() == 0


@pytest.mark.parametrize("shown", [[], [replace(ROW, lineage=uuid4())], [replace(ROW, lineage=uuid4(), position=99)]])
def test_another_database_is_told_from_a_set_back_one(shown: list[Watermark]) -> None:
    shown = [replace(one, session=S2) for one in shown]
    loss = judge([MARK], shown)
    assert loss is not None
    assert (loss.settled_seq, loss.same_database) == (0, False)


def test_one_lane_that_lost_something_is_enough() -> None:
    marks = [MARK, Mark(HERE, S2, 7, lane=1)]
    assert judge(marks, [ROW, row(S2, 7, lane=1)]) is None
    loss = judge(marks, [ROW, replace(row(S2, 6, lane=1), settled_seq=380)])
    assert loss is not None
    # All of what one surviving row proves is there.
    assert loss.settled_seq == 400
    assert judge(marks, [ROW]) is not None


def test_the_lineage_stays_that_of_the_database() -> None:
    other = replace(ROW, lane=1, lineage=UUID(int=HERE.int - 1), settled_seq=500)
    assert lineage_of([], []) is None
    assert lineage_of([], [ROW]) == HERE
    assert lineage_of([], [ROW, other]) == other.lineage
    assert lineage_of([MARK], [ROW, other]) == HERE
    assert lineage_of([MARK], [other]) == other.lineage


def test_a_mark_is_kept_exactly_and_damage_is_noticed() -> None:
    mark = Mark(HERE, S1, 2**40, lane=3)
    data = mark.pack()
    assert Mark.unpack(data) == mark
    for place in range(len(data)):
        damaged = bytes(byte ^ (1 if index == place else 0) for index, byte in enumerate(data))
        assert Mark.unpack(damaged) is None
    assert Mark.unpack(data[:-1]) is None
    loss = judge([UNKNOWN], [ROW])
    assert loss is not None
    assert not loss.same_database


def test_a_fingerprint_tells_losses_apart() -> None:
    marks = [MARK, Mark(HERE, S2, 7, lane=1)]
    assert fingerprint(marks) == fingerprint(list(marks))
    assert len({fingerprint(marks), fingerprint(marks[:1]), fingerprint([replace(MARK, position=51)]), ""}) == 4


class Remembered(NoMemory):
    """What a store knows."""

    def __init__(self, marks: list[Mark], watermark: int) -> None:
        self._marks, self._watermark = marks, watermark

    def marks(self) -> list[Mark]:
        return self._marks

    def watermark(self) -> int:
        return self._watermark


def test_unrecorded_marks_are_known_until_they_are_forgotten() -> None:
    old = [Mark(UUID(int=1), UUID(int=2), 5, lane) for lane in (0, 1)]
    new = Mark(UUID(int=1), UUID(int=2), 6, 1)
    ahead = Ahead(Remembered(old, 10))
    assert (ahead.marks(), ahead.watermark()) == (old, 10)
    ahead.know([new], range(11, 15))
    assert ahead.marks() == [new, old[0]]
    assert ahead.watermark() == 14
    ahead.forget()
    assert (ahead.marks(), ahead.watermark()) == (old, 10)


@pytest.mark.parametrize(("recorded", "expected"), [(9, 9), (10, 14), (12, 14), (14, 14), (20, 20)])
def test_the_watermark_passes_only_what_lies_right_behind_it(recorded: int, expected: int) -> None:
    ahead = Ahead(Remembered([], recorded))
    ahead.know([], range(11, 15))
    assert ahead.watermark() == expected


@pytest.mark.parametrize(
    ("own", "last_seq", "named"),
    [
        (RelaySessions((S1,)), 500, True),  # the copy was made at the acknowledgement that it followed
        (RelaySessions((S1, S2)), 500, False),  # the store's own, whose acknowledgement was lost
        (None, 500, False),  # a store of an older version
        (None, 399, True),  # whose numbers tell all the same
        (RelaySessions((S1, S2)), 399, True),
    ],
)
def test_work_of_a_copy_of_the_store_is_named(own: RelaySessions | None, last_seq: int, named: bool) -> None:
    loss = judge([MARK], [row(S2, 3, (S1, 50))], own, last_seq)
    assert (loss is not None and loss.of_a_copy) is named


@pytest.mark.parametrize("complete", [True, False])
def test_a_lost_commit_is_told_from_a_copy_by_complete_sessions_only(complete: bool) -> None:
    loss = judge([MARK], [row(S2, 3)], RelaySessions((S1,), complete), 500)
    assert loss is not None
    assert loss.of_a_copy is complete
    loss = judge([MARK], [row(S2, 3)], RelaySessions((S2, S1), complete), 500)
    assert loss is not None
    assert not loss.of_a_copy


def test_a_backup_of_before_the_first_delivery_is_told() -> None:
    assert judge([], [ROW], RelaySessions(), 500) is not None
    assert judge([], [ROW], RelaySessions((S1,)), 500) is None


def test_sessions_are_kept_up_to_a_limit_in_a_record_of_one_size() -> None:
    ids = [uuid4() for _ in range(61)]
    sessions = RelaySessions().begun(*ids[:60])
    assert sessions.complete
    assert RelaySessions.unpack(sessions.pack()) == sessions
    more = sessions.begun(ids[60])
    assert (ids[0] in more, ids[60] in more, more.complete) == (False, True, False)
    assert sessions.begun(ids[3]) == RelaySessions((*ids[:3], *ids[4:60], ids[3]))
    assert len({len(one.pack()) for one in (RelaySessions(), sessions, more)}) == 1


@pytest.mark.parametrize("at", [0, 3, 5, 9, 100])
def test_a_changed_bit_in_the_sessions_is_noticed(at: int) -> None:
    data = bytearray(RelaySessions((S1,)).pack())
    data[at] ^= 1
    with pytest.raises(StoreCorrupt):
        RelaySessions.unpack(bytes(data))


def test_a_loss_says_what_is_missing_and_where_the_database_stands() -> None:
    loss = judge([MARK], [row(S2, 60), replace(row(S1, 49), settled_seq=300)])
    assert loss is not None
    assert loss.message == (
        "PostgreSQL lost entries that it acknowledged, or this store is an older copy of itself: transaction 50 of "
        f"session {S1} is not there; the newest is 60 of {S2}"
    )
    loss = judge([MARK], [])
    assert loss is not None
    assert loss.message == (
        "this database has never acknowledged anything to this store, or has lost its row in outbox_watermarks"
    )


def test_a_mark_of_an_older_store_stays_readable() -> None:
    mark = Mark(HERE, S1, 2**40, lane=3)
    body = b"\0\3" + HERE.bytes + S1.bytes + (2**40).to_bytes(8, "big")
    data = body + zlib.crc32(body).to_bytes(4, "big")
    assert Mark.unpack(data) == mark
    for place in range(len(data)):
        damaged = bytes(byte ^ (1 if index == place else 0) for index, byte in enumerate(data))
        assert Mark.unpack(damaged) is None
    assert Mark.unpack(data + b"\0") is None
    assert mark.pack().endswith(body)


def test_a_fingerprint_reads_as_lane_session_and_position() -> None:
    assert fingerprint([MARK, Mark(HERE, S2, 7, lane=1)]) == f"0:{S1}:50 1:{S2}:7"
