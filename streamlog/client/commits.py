"""Committing positions for a group: on request, and by itself from inside `poll`.

Auto-commit stores, at the start of a poll, the positions of everything handed out by earlier polls
(SEMANTICS 3.6.4):
a crash means redelivery, never loss, as long as processing happens between polls.

Invariants:
 1. What is committed is at most the position: a record not handed out is never committed.
 2. A commit of this consumer names its member and generation; a stale member's commit is refused by the
    coordinator.
 3. Positions that were committed already are not committed again.

Source: Kafka ConsumerCoordinator (maybeAutoCommitOffsetsAsync, commitOffsetsSync).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from streamlog.client.fetching import UNKNOWN_OFFSET, AssignedPartition
from streamlog.client.measuring import MemberCounts
from streamlog.client.patience import COORDINATOR_MOVES
from streamlog.config import ConsumerConfig
from streamlog.errors import (
    CommitFailedError,
    ConfigError,
    FencedInstanceIdError,
    IllegalGenerationError,
    InvalidGroupIdError,
    RebalanceInProgressError,
    StreamlogError,
    StreamlogTimeoutError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
)
from streamlog.record import OffsetAndMetadata, TopicPartition

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.runner import Waiter
    from streamlog.client.membership import Membership
    from streamlog.core.group_events import OffsetCommit, OffsetCommitReply

RETRY_MS: Final = 20
_STALE = (UnknownMemberIdError, IllegalGenerationError, FencedInstanceIdError)


class Commits:
    """The committing side of one consumer."""

    def __init__(
        self,
        backend: BrokerCluster,
        config: ConsumerConfig,
        assigned: dict[TopicPartition, AssignedPartition],
    ) -> None:
        self.membership: Membership | None = None
        # While a poll is under way: when it must be over; its commits do not wait longer.
        self.deadline_ms: int | None = None
        self._backend = backend
        self._config = config
        self._assigned = assigned
        self._automatic = config.enable_auto_commit and config.group_id is not None
        self._clock = backend.runtime.clock
        self._due_ms = self._clock.monotonic_ms() + config.auto_commit_interval_ms
        self.lost: set[TopicPartition] = set()
        """Partitions that went away with records handed out and not committed, since the last transaction ended."""
        # Whether the consumer waits for records, or was when an exception struck: nobody works on those before.
        self.is_waiting = False
        self.counts = MemberCounts()
        # What a commit waits on while a rebalance is in its way; made when it is first needed.
        self.waiter: Waiter | None = None

    # -- by itself
    # ---------------------------------------------------------------------------------------------------

    def is_due(self) -> bool:
        return self._automatic and self._clock.monotonic_ms() >= self._due_ms

    def due_in_ms(self) -> int | None:
        """How long until the next auto-commit has something to do; None if it has not."""
        if not self._automatic or not self._positions():
            return None
        return max(1, self._due_ms - self._clock.monotonic_ms())

    def maybe_auto_commit(self, *, force: bool = False, leaving: bool = False) -> None:
        """Commit the positions if it is time (or `force`). A rebalance or a lost membership is left to the
        next poll.
        """
        if not self._automatic or not (force or self.is_due()):
            return
        self._due_ms = self._clock.monotonic_ms() + self._config.auto_commit_interval_ms
        positions = self._positions()
        if not positions:
            return
        timeout_ms = self._config.default_api_timeout_ms
        if self.deadline_ms is not None:
            timeout_ms = max(0, min(timeout_ms, self.deadline_ms - self._clock.monotonic_ms()))
        try:
            self._store(positions, timeout_ms)
        except (StreamlogTimeoutError, *COORDINATOR_MOVES):
            self._due_ms = self._clock.monotonic_ms()  # not known to be stored: the next poll tries again
        except UnknownTopicOrPartitionError:
            pass  # a topic was deleted; the offsets of the others are stored
        except (RebalanceInProgressError, *_STALE) as error:
            if leaving:
                _log_lost_commit(self._config.group_id, error)

    def may_follow(self, exception: BaseException | None) -> bool:
        """Whether leaving `with` commits, by what it is left with.

        An exception may be that of the record in hand, which must come again. Ctrl-C, SystemExit or a cancelled
        task that strikes while the consumer waits is none: what was handed out is as finished as for auto-commit.
        """
        return exception is None or (self.is_waiting and not isinstance(exception, Exception))

    def _positions(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """What was handed out since the last commit."""
        return {
            tp: OffsetAndMetadata(assigned.position)
            for tp, assigned in self._assigned.items()
            if assigned.position != UNKNOWN_OFFSET and assigned.position != assigned.committed_position
        }

    def _consumed(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """`_positions` without those a reset chose and nobody has read from: committing those would say
        nothing.
        """
        assigned = self._assigned
        return {
            tp: where
            for tp, where in self._positions().items()
            if where.offset != assigned[tp].reset_position
        }

    # -- on request
    # --------------------------------------------------------------------------------------------------

    def commit(self, offsets: Mapping[TopicPartition, Any] | None, timeout_ms: int) -> None:
        """Commit and wait; drives a rebalance that is in the way. See `Consumer.commit`."""
        if self._config.group_id is None:
            raise InvalidGroupIdError(
                "this consumer has no group to commit for: use cluster.consumer_group(...) or group_id=..."
            )
        wanted = self._consumed() if offsets is None else _checked_offsets(offsets)
        if not wanted:
            return
        deadline_ms = self._clock.monotonic_ms() + timeout_ms
        gone: list[TopicPartition] = []
        while wanted:
            left_ms = deadline_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                raise StreamlogTimeoutError(
                    f"offsets of group {self._config.group_id!r} could not be committed within "
                    f"{timeout_ms} ms: "
                    "it is rebalancing",
                    group_id=self._config.group_id,
                    timeout_ms=timeout_ms,
                )
            try:
                self._store(wanted, left_ms)
                break
            except UnknownTopicOrPartitionError:
                if offsets is not None:
                    raise
                break  # a topic was deleted under the consumer; the offsets of the others are stored
            except (RebalanceInProgressError, IllegalGenerationError) as error:
                membership = self.membership
                if membership is None or (membership.is_stable and isinstance(error, IllegalGenerationError)):
                    raise self._stale() from error
                if membership.is_advancing:
                    raise  # inside a rebalance listener: only its poll can go on
                self._drive(membership, left_ms)
                if membership.is_stable:
                    gone += [tp for tp in wanted if tp not in self._assigned]
                    wanted = {tp: where for tp, where in wanted.items() if tp in self._assigned}
            except (UnknownMemberIdError, FencedInstanceIdError) as error:
                raise self._stale() from error
            except COORDINATOR_MOVES:
                self._pause(left_ms)
        if gone:
            raise CommitFailedError(
                f"{', '.join(map(str, gone))} went to another member of group {self._config.group_id!r} "
                f"before the "
                "commit; their records will be read again",
                group_id=self._config.group_id,
                partitions=gone,
            )

    def _drive(self, membership: Membership, left_ms: int) -> None:
        """Take part in the rebalance under way, and wait a little if it is others who keep it."""
        membership.advance()
        if not membership.is_stable:
            membership.is_waiting = True
            try:
                self._pause(left_ms)
            finally:
                membership.is_waiting = False

    def _pause(self, left_ms: int) -> None:
        if self.waiter is None:
            self.waiter = self._backend.runtime.waiter()
        self.waiter.wait(min(RETRY_MS, left_ms))

    def _stale(self) -> CommitFailedError:
        return CommitFailedError(
            f"group {self._config.group_id!r} no longer knows this member: it was too slow, or was replaced. "
            "Its records will be read again by others; process less per poll or raise max_poll_interval_ms",
            group_id=self._config.group_id,
        )

    def positions(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """What a transaction commits: the positions behind what was handed out and is not committed yet."""
        return self._consumed()

    def stored(self, positions: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """A transaction has committed these."""
        for tp, where in positions.items():
            assigned = self._assigned.get(tp)
            if assigned is not None:
                assigned.committed(where.offset)

    def event(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> OffsetCommit:
        """The commit of a member, in its generation. Raises RebalanceInProgressError while it has none."""
        membership = self.membership
        member_id, generation, instance_id = "", -1, None
        if membership is not None:
            member_id, generation, instance_id = (
                membership.member_id,
                membership.generation,
                self._config.group_instance_id,
            )
            if not member_id:
                if membership.is_advancing:
                    raise UnknownMemberIdError(f"group {self._config.group_id!r} has dropped this member")
                raise RebalanceInProgressError(
                    f"group {self._config.group_id!r}: this member has not joined yet"
                )
        from streamlog.core import group_events as events

        return events.OffsetCommit(
            token=0,
            offsets=dict(offsets),
            member_id=member_id,
            generation=generation,
            group_instance_id=instance_id,
        )

    def _store(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], timeout_ms: int) -> None:
        event = self.event(offsets)
        assert self._config.group_id is not None
        begun_us = self._clock.monotonic_us()
        reply: OffsetCommitReply = self._backend.call_group(self._config.group_id, event, timeout_ms)
        self.counts.commits += 1
        self.counts.commit_ms.append((self._clock.monotonic_us() - begun_us) / 1_000)
        for tp, error in reply.errors.items():
            assigned = self._assigned.get(tp)
            if error is None and assigned is not None:
                assigned.committed(offsets[tp].offset)
        for error in reply.errors.values():
            if error is not None:
                raise error


def _checked_offsets(offsets: Mapping[TopicPartition, Any]) -> dict[TopicPartition, OffsetAndMetadata]:
    usual: dict[TopicPartition, OffsetAndMetadata] = {}
    if type(offsets) is dict:
        for tp, given in offsets.items():
            if type(tp) is not TopicPartition or type(tp[0]) is not str or type(tp[1]) is not int:
                break
            if type(given) is not int or given < 0:
                break
            usual[tp] = OffsetAndMetadata(given)
        else:
            return usual
    from streamlog.client.offsets import checked_partitions

    if not isinstance(offsets, Mapping):
        raise ConfigError(
            f"commit({offsets!r:.80}): allowed: a mapping of partitions to next offsets, such as "
            "{(record.topic, record.partition): record.offset + 1}, or nothing for all that was handed out",
            option="offsets",
            value=offsets,
            allowed="a mapping of partitions to next offsets",
        )
    checked: dict[TopicPartition, OffsetAndMetadata] = {}
    for key, tp in zip(offsets, checked_partitions(offsets), strict=True):
        given = offsets[key]
        if isinstance(given, OffsetAndMetadata):
            checked[tp] = given
        elif isinstance(given, int) and not isinstance(given, bool) and given >= 0:
            checked[tp] = OffsetAndMetadata(given)
        else:
            raise ConfigError(
                f"offset {given!r} of {tp}: allowed: the next offset to read, an int >= 0, or "
                f"OffsetAndMetadata",
                option="offsets",
                value=given,
                allowed="an int >= 0 or OffsetAndMetadata",
            )
    return checked


def _log_lost_commit(group_id: str | None, error: StreamlogError) -> None:
    import logging

    logging.getLogger("streamlog.consumer").warning(
        "group %s: the last positions could not be committed, their records will be read again: %s",
        group_id,
        error,
    )
