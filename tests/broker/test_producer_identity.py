"""Sequences as they are guessed, given and given again."""

from __future__ import annotations

from itertools import count

from streamlog.batch import Batch, seal_columnar
from streamlog.broker.producer_identity import PRODUCER_EPOCH_MAX, ProducerIdentity

KEY = ("t", 0)
LAST = 2**31 - 1


def sealed(identity: ProducerIdentity, records: int = 1) -> Batch:
    return seal_columnar(
        None,
        [b"x"] * records,
        timestamps=5,
        producer_id=identity.producer_id,
        producer_epoch=identity.producer_epoch,
        base_sequence=identity.guess(KEY, records),
    )


def test_guesses_are_right_while_nothing_fails() -> None:
    identity = ProducerIdentity(count(7).__next__)
    for records, first in ((2, 0), (3, 2), (1, 5)):
        batch = sealed(identity, records)
        stamped = identity.stamped(KEY, batch, None)
        assert stamped is batch and (stamped.producer_id, stamped.base_sequence) == (7, first)
        identity.written(KEY, stamped)


def test_batches_of_one_request_follow_one_another() -> None:
    identity = ProducerIdentity(count().__next__)
    first, second = sealed(identity, 2), sealed(identity)
    sent = identity.stamped(KEY, first, None)
    assert identity.stamped(KEY, second, sent) is second


def test_what_surely_was_not_written_leaves_its_sequences_to_those_behind() -> None:
    identity = ProducerIdentity(count().__next__)
    lost, behind, later = sealed(identity, 4), sealed(identity), sealed(identity)
    identity.stamped(KEY, lost, None)  # too large: refused, and neither written nor in doubt
    assert not identity.expects(KEY, behind)
    again = identity.stamped(KEY, behind, None)
    assert again.base_sequence == 0 and again.crc != behind.crc and list(again.columns().values) == [b"x"]
    identity.written(KEY, again)
    assert identity.stamped(KEY, later, None).base_sequence == 1
    identity.written(KEY, identity.stamped(KEY, later, None))
    guessed = sealed(identity)
    assert identity.stamped(KEY, guessed, None) is guessed, "who is sealed from now on guesses right again"


def test_a_doubt_begins_an_epoch_in_every_partition() -> None:
    identity = ProducerIdentity(count().__next__)
    other = ("t", 1)
    for key in (KEY, other):
        identity.written(key, identity.stamped(key, sealed(identity), None))
    identity.in_doubt()
    for key in (KEY, other):
        stamped = identity.stamped(key, sealed(identity), None)
        assert (stamped.producer_epoch, stamped.base_sequence) == (1, 0)
        assert identity.expects(key, stamped) and not identity.is_of_former_epoch(stamped)
        identity.written(key, stamped)
    assert identity.stamped(KEY, sealed(identity), None).base_sequence == 1


def test_a_late_answer_of_the_former_epoch_does_not_bring_it_back() -> None:
    identity = ProducerIdentity(count().__next__)
    late = identity.stamped(KEY, sealed(identity), None)
    identity.in_doubt()
    assert identity.is_of_former_epoch(late)
    identity.written(KEY, late)
    stamped = identity.stamped(KEY, sealed(identity), None)
    assert (stamped.producer_epoch, stamped.base_sequence) == (1, 0)


def test_after_the_last_epoch_comes_another_id() -> None:
    identity = ProducerIdentity(count(7).__next__)
    identity.producer_epoch = PRODUCER_EPOCH_MAX
    identity.in_doubt()
    assert (identity.producer_id, identity.producer_epoch) == (8, 0)


def test_sequences_wrap() -> None:
    identity = ProducerIdentity(count().__next__)
    identity._guesses[KEY] = LAST
    identity._next[KEY] = (0, 0, LAST)
    stamped = identity.stamped(KEY, sealed(identity, 2), None)
    assert (stamped.base_sequence, stamped.last_sequence) == (LAST, 0)
    identity.written(KEY, stamped)
    assert identity.stamped(KEY, sealed(identity), None).base_sequence == 1
