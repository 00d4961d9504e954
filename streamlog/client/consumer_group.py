"""A consumer group as users hold it: members, lag, offsets, resets, and `run`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from re import Pattern
from typing import TYPE_CHECKING, Any

import msgspec

from streamlog.broker.reading import end_for, view_of
from streamlog.client.consumer import Consumer
from streamlog.client.handling import GroupRun
from streamlog.client.offsets import OffsetLookup, checked_partitions
from streamlog.client.patience import patient
from streamlog.config import ConsumerConfig
from streamlog.core import consumer_protocol
from streamlog.core import group_events as events
from streamlog.errors import ConfigError, NonEmptyGroupError
from streamlog.record import OffsetAndMetadata, Record, TopicPartition
from streamlog.wording import plural

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster

Position = "str | int | Mapping[TopicPartition, int]"


class GroupMember(msgspec.Struct, frozen=True):
    """One live member of a group."""

    member_id: str
    client_id: str
    group_instance_id: str | None
    assignment: tuple[TopicPartition, ...]


class ConsumerGroup:
    """A named group of consumers that share the partitions of its topics. Make it with `cluster.consumer_group(...)`."""

    def __init__(
        self,
        backend: BrokerCluster,
        group_id: str,
        topics: tuple[str, ...] | Pattern[str] | None,
        config: ConsumerConfig,
        make_consumer: Callable[[ConsumerConfig], Consumer],
    ) -> None:
        self.group_id = group_id
        self.config = config
        self._backend = backend
        self._topics = topics
        self._make_consumer = make_consumer
        self._runs: dict[GroupRun, None] = {}

    def __repr__(self) -> str:
        if self._backend.closed:
            return f"<ConsumerGroup {self.group_id!r} of a closed cluster>"
        count = len(self.members())
        return f"<ConsumerGroup {self.group_id!r} {self.state}, {plural(count, 'member')}>"

    # -- members -----------------------------------------------------------------------------------------------------

    def consumer(
        self,
        *,
        config: Mapping[str, Any] | None = None,
        on_assigned: Any = None,
        on_revoked: Any = None,
        on_lost: Any = None,
        **options: Any,
    ) -> Consumer:
        """One more member. It joins at its first poll; options override the group's for this member.

        on_...: rebalance listeners, see `Consumer.subscribe`.
        """
        topics = self._topics
        if topics is None:
            raise ConfigError(
                f"group {self.group_id!r} was opened without topics; pass them: "
                f"cluster.consumer_group({self.group_id!r}, [...])",
                option="topics",
                value=None,
                allowed="topic names or a pattern",
            )
        merged = self.config if not options and not config else self.config.replaced(options, config)
        consumer = self._make_consumer(merged)
        try:
            consumer.subscribe(topics, on_assigned=on_assigned, on_revoked=on_revoked, on_lost=on_lost)
        except BaseException:
            consumer.close()
            raise
        return consumer

    @property
    def topics(self) -> list[str]:
        """The topics the group reads, as far as it is told here or its members say."""
        return sorted(
            set(self._own_topics()) | {tp.topic for member in self.members() for tp in member.assignment}
        )

    def _own_topics(self) -> list[str]:
        topics = self._topics
        if topics is None:
            return []
        if isinstance(topics, tuple):
            return list(topics)
        return [
            topic.name
            for topic in list(self._backend.topics.values())
            if not topic.internal and topics.match(topic.name)
        ]

    @property
    @patient
    def state(self) -> str:
        """Kafka's name of the group's state: Empty, PreparingRebalance, CompletingRebalance, Stable, Dead."""
        self._backend.check_usable()
        hosted = self._backend.coordinator.group(self.group_id)
        return "Empty" if hosted is None else hosted.view.state.value

    @patient
    def members(self) -> list[GroupMember]:
        """The live members and what they own."""
        self._backend.check_usable()
        hosted = self._backend.coordinator.group(self.group_id)
        if hosted is None:
            return []
        return [
            GroupMember(
                member.member_id,
                member.client_id,
                member.group_instance_id,
                consumer_protocol.decode_assignment(member.assignment).partitions
                if member.assignment
                else (),
            )
            for member in hosted.view.members
        ]

    # -- offsets -----------------------------------------------------------------------------------------------------

    @patient
    def offsets(self) -> dict[TopicPartition, int]:
        """The committed offsets: for each partition the next record to read."""
        self._backend.check_usable()
        committed = self._backend.coordinator.committed(self.group_id, None)
        return {tp: offset.offset for tp, offset in committed.items()}

    @patient
    def lag(self) -> dict[TopicPartition, int]:
        """For each partition, how many offsets are behind what is committed; without a commit, behind
        where reading would start (`auto_offset_reset`).

        Covers what the group has committed for, what its live members own, and the topics given to `consumer_group`.
        Opened without topics, a group that has neither commits nor members gives {}: nothing says yet what it reads.
        """
        committed = self.offsets()
        lookup = OffsetLookup(self._backend, self.config)
        lags: dict[TopicPartition, int] = {}
        for tp in self._partitions(committed):
            partition = self._backend.partition(*tp)
            view = view_of(partition)
            end = end_for(view, self.config.isolation_level)
            start = committed.get(tp)
            if start is None:
                start = lookup.reset_offset(partition)
                start = end if start is None else start
            lags[tp] = max(0, end - max(start, view.log_start_offset))
        return lags

    def _partitions(self, committed: Mapping[TopicPartition, int]) -> list[TopicPartition]:
        images = self._backend.topics
        names = [name for name in self.topics if name in images]
        own = {
            TopicPartition(name, number) for name in names for number in range(len(images[name].partitions))
        }
        return sorted(
            own
            | {
                tp
                for tp in committed
                if tp.topic in images and tp.partition < len(images[tp.topic].partitions)
            }
        )

    @patient
    def reset_offsets(
        self,
        to: str | int | Mapping[TopicPartition, int] = "earliest",
        *,
        topics: Iterable[str] | None = None,
        dry_run: bool = False,
    ) -> dict[TopicPartition, int]:
        """Move the committed offsets. The group must have no live members.

        to:      "earliest", "latest", "timestamp:MS", "shift:N" (from the committed offset, negative = back), an int
                 (that offset in every partition), or a mapping partition -> offset. Results are kept within the log.
        topics:  only these; default: all topics of the group and all it has committed for.
        dry_run: only say what would be committed.
        Returns partition -> offset.  Raises NonEmptyGroupError, ConfigError.
        """
        self._backend.check_usable()
        members = self.members()
        if members and not dry_run:
            raise NonEmptyGroupError(
                f"group {self.group_id!r} has live members ({len(members)}); close them before resetting its offsets",
                group_id=self.group_id,
                members=len(members),
            )
        committed = self.offsets()
        if isinstance(to, Mapping):
            wanted = {tp: to[key] for key, tp in zip(to, checked_partitions(to), strict=True)}
        else:
            chosen = None if topics is None else set([topics] if isinstance(topics, str) else topics)
            partitions = [tp for tp in self._partitions(committed) if chosen is None or tp.topic in chosen]
            if chosen:
                named = {tp.topic for tp in partitions}
                for name in sorted(chosen - named):
                    image = self._backend.topic(name)
                    partitions += [TopicPartition(name, number) for number in range(len(image.partitions))]
            wanted = {tp: self._target(to, tp, committed) for tp in partitions}
        target = {tp: self._within_log(tp, offset) for tp, offset in wanted.items()}
        if target and not dry_run:
            reply: events.OffsetCommitReply = self._backend.call_group(
                self.group_id,
                events.OffsetCommit(
                    token=0, offsets={tp: OffsetAndMetadata(offset) for tp, offset in target.items()}
                ),
            )
            for error in reply.errors.values():
                if error is not None:
                    raise error
        return target

    def _target(self, to: str | int, tp: TopicPartition, committed: Mapping[TopicPartition, int]) -> int:
        partition = self._backend.partition(*tp)
        view = view_of(partition)
        lookup = OffsetLookup(self._backend, self.config)
        if isinstance(to, int) and not isinstance(to, bool):
            return to
        if to == "earliest":
            return view.log_start_offset
        if to == "latest":
            return lookup.end_offset(partition)
        word, _, number = to.partition(":") if isinstance(to, str) else ("", "", "")
        if word in ("timestamp", "shift") and number.removeprefix("-").isdecimal():
            if word == "shift":
                return committed.get(tp, view.log_start_offset) + int(number)
            found = lookup.for_timestamp(partition, int(number))
            return lookup.end_offset(partition) if found is None else found.offset
        raise ConfigError(
            f"reset_offsets({to!r}): allowed: 'earliest', 'latest', 'timestamp:MS', "
            "'shift:N', an offset, or a mapping of offsets",
            option="to",
            value=to,
            allowed="'earliest', 'latest', 'timestamp:MS', 'shift:N', an int, a mapping",
            suggestion={
                "beginning": "earliest",
                "smallest": "earliest",
                "end": "latest",
                "largest": "latest",
            }.get(str(to)),
        )

    def _within_log(self, tp: TopicPartition, offset: object) -> int:
        if isinstance(offset, bool) or not isinstance(offset, int):
            raise ConfigError(
                f"offset {offset!r} of {tp}: allowed: an int", option="to", value=offset, allowed="an int"
            )
        view = view_of(self._backend.partition(*tp))
        return min(max(offset, view.log_start_offset), view.high_watermark)

    def delete(self) -> None:
        """Forget the group and its offsets. Raises NonEmptyGroupError, GroupIdNotFoundError."""
        self._backend.check_usable()
        self._backend.call_group(self.group_id, events.DeleteGroup(token=0))

    # -- running a handler -------------------------------------------------------------------------------------------

    def run(
        self,
        handler: Callable[[Record], Any],
        *,
        workers: int = 1,
        on_error: str | Callable[[Record, Exception], Any] = "raise",
        stop_at_end: bool = False,
        **options: Any,
    ) -> None:
        """Call `handler(record)` for every record, in order per partition, in `workers` members; commit after handling.

        on_error: "raise" stops everybody, commits what finished and raises; "skip" goes on behind the record; a callable
                  gets (record, exception) and may raise. A record that cannot be deserialized is judged like one whose
                  handler failed; its key and value are then bytes.
        Blocks until `stop()`, Ctrl-C, an error, or - with `stop_at_end` - until everything there was at the
        start is handled.
        """
        options["stop_at_end"] = stop_at_end
        self._carry_out(GroupRun(self._backend, self, handler, workers, on_error, options))

    def _carry_out(self, run: GroupRun) -> None:
        self._runs[run] = None
        try:
            run.run()
        finally:
            self._runs.pop(run, None)

    def stop(self) -> None:
        """End every `run` under way, from any thread; records being handled are finished and committed."""
        for run in list(self._runs):
            run.stop()
