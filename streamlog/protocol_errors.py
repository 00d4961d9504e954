"""The root of streamlog's errors and the ones Kafka has a number for. Import them from `streamlog.errors`.

1. `code` is Kafka's number (-1 where Kafka has none); two classes never share one by declaration, children
   inherit it.
2. `retriable`, `fatal` and `indefinite` are class facts, declared once in the class line, inherited by
   children.
3. `__reduce__` is the only pickling rule; no class below has an `__init__` of its own, so all of them
   pickle.

Source: Kafka's Errors.java (numbers, retriable); SEMANTICS 1.5 (when each arises).
Not implemented: numbers of authorization, SASL, delegation tokens, telemetry, Raft voters (streamlog has none
of them); `error_class` maps them to UnknownServerError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

_BY_CODE: dict[int, type[StreamlogError]] = {}
_RESERVED = frozenset({"args", "facts", "with_traceback", "add_note"})


class StreamlogError(Exception):
    """Root of everything streamlog raises."""

    code: ClassVar[int] = -1
    retriable: ClassVar[bool] = False
    fatal: ClassVar[bool] = False
    indefinite: ClassVar[bool] = False

    facts: dict[str, object]

    def __init_subclass__(
        cls,
        code: int | None = None,
        retriable: bool | None = None,
        fatal: bool | None = None,
        indefinite: bool | None = None,
    ) -> None:
        super().__init_subclass__()
        if code is not None:
            cls.code = code
            _BY_CODE.setdefault(code, cls)
        if retriable is not None:
            cls.retriable = retriable
        if fatal is not None:
            cls.fatal = fatal
        if indefinite is not None:
            cls.indefinite = indefinite

    def __init__(self, message: str = "", /, **facts: object) -> None:
        super().__init__(message)
        self.facts = facts
        for name, fact in facts.items():
            if name in _RESERVED or name.startswith("__"):
                raise TypeError(f"{type(self).__name__}: a fact may not be called {name!r}")
            setattr(self, name, fact)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    if TYPE_CHECKING:
        # Facts are attributes nobody declares; type checkers must let them be read.
        def __getattr__(self, name: str) -> Any: ...

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        state = {
            name: value for name, value in vars(self).items() if name not in self.facts and name != "facts"
        }
        return _rebuild, (type(self), str(self), _picklable(self.facts), _picklable(state))


def error_class(code: int) -> type[StreamlogError]:
    """The class for one of Kafka's error numbers; UnknownServerError for a number nobody here knows."""
    if code == 0:
        raise ValueError("code 0 is Kafka's 'no error': look at it before asking for an error class")
    return _BY_CODE.get(code, UnknownServerError)


def _rebuild(
    cls: type[StreamlogError], message: str, facts: dict[str, object], state: dict[str, object]
) -> StreamlogError:
    error = cls.__new__(cls)
    StreamlogError.__init__(error, message, **facts)
    vars(error).update(state)
    return error


def _picklable(values: dict[str, object]) -> dict[str, object]:
    import pickle

    safe: dict[str, object] = {}
    for name, value in values.items():
        try:
            pickle.dumps(value)
        except Exception:  # whatever a foreign __reduce__ raises; the error itself must get through
            safe[name] = repr(value)
        else:
            safe[name] = value
    return safe


# Kafka's own, by number. ------------------------------------------------------------------------


class UnknownServerError(StreamlogError, RuntimeError, code=-1):
    """The broker failed in a way that has no name; see its cause or the broker's log."""


class OffsetOutOfRangeError(StreamlogError, LookupError, code=1):
    """No such offset: below the log start or above the log end. Seek, or let `auto_offset_reset` decide."""

    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    log_start_offset: int | None = None
    log_end_offset: int | None = None


class CorruptRecordError(StreamlogError, ValueError, code=2, retriable=True):
    """A batch does not match its CRC or its own header. Nothing of it was used."""


class UnknownTopicOrPartitionError(StreamlogError, LookupError, code=3, retriable=True):
    """No such topic or partition (yet): create it, or open with `auto_create_topics=True`."""


class LeaderNotAvailableError(StreamlogError, code=5, retriable=True):
    """The partition has no leader now; an election or a returning broker ends this."""


class NotLeaderOrFollowerError(StreamlogError, code=6, retriable=True):
    """This broker does not lead the partition (any more); refresh the metadata and ask the leader."""


class StreamlogTimeoutError(StreamlogError, TimeoutError, code=7, retriable=True, indefinite=True):
    """REQUEST_TIMED_OUT: no answer within the bound. A write may be in the leader's log."""


class BrokerNotAvailableError(StreamlogError, code=8):
    """The broker is not running or cannot be reached."""


class ReplicaNotAvailableError(StreamlogError, code=9, retriable=True):
    """The broker holds no such replica (yet)."""


class RecordTooLargeError(StreamlogError, ValueError, code=10):
    """MESSAGE_TOO_LARGE: above `max_request_size` or the topic's `max.message.bytes`. Nothing was written."""


class OffsetMetadataTooLargeError(StreamlogError, ValueError, code=12):
    """The text committed beside an offset is longer than `offset.metadata.max.bytes`."""


class NetworkError(StreamlogError, ConnectionError, code=13, retriable=True, indefinite=True):
    """The connection broke before the answer came. A write may have happened."""


class CoordinatorLoadInProgressError(StreamlogError, code=14, retriable=True):
    """The coordinator still replays its log; ask again."""


class CoordinatorNotAvailableError(StreamlogError, code=15, retriable=True):
    """The coordinator's partition has no leader now; ask again."""


class NotCoordinatorError(StreamlogError, code=16, retriable=True):
    """This broker does not coordinate that group or transaction; find the coordinator again."""


class InvalidTopicError(StreamlogError, ValueError, code=17):
    """Not a topic name, or an internal topic that clients may not write."""


class RecordListTooLargeError(StreamlogError, ValueError, code=18):
    """The batch is larger than any log may take."""


class NotEnoughReplicasError(StreamlogError, code=19, retriable=True):
    """acks="all" and fewer in-sync replicas than `min.insync.replicas`. Nothing was written."""


class NotEnoughReplicasAfterAppendError(StreamlogError, code=20, retriable=True, indefinite=True):
    """Appended, then the in-sync set shrank below `min.insync.replicas`. The records are in the log."""


class InvalidRequiredAcksError(StreamlogError, ValueError, code=21):
    """acks must be "all" (-1), 0 or 1."""


class IllegalGenerationError(StreamlogError, code=22):
    """The group has rebalanced since: this member's generation is over. Join again."""


class InconsistentGroupProtocolError(StreamlogError, ValueError, code=23):
    """The member shares no assignor with the group's other members."""


class InvalidGroupIdError(StreamlogError, ValueError, code=24):
    """No group id, or an empty one, where the operation needs one."""


class UnknownMemberIdError(StreamlogError, LookupError, code=25):
    """The coordinator does not know this member (its session may have ended). Join again without an id."""


class InvalidSessionTimeoutError(StreamlogError, ValueError, code=26):
    """`session_timeout_ms` is outside the cluster's `group.min/max.session.timeout.ms`."""


class RebalanceInProgressError(StreamlogError, code=27):
    """The group is rebalancing: poll (it rejoins), then do it again."""


class InvalidCommitOffsetSizeError(StreamlogError, ValueError, code=28):
    """The commit would make a record too large for the offsets topic."""


class InvalidTimestampError(StreamlogError, ValueError, code=32):
    """The record's timestamp is outside what `message.timestamp.before/after.max.ms` allow."""

    record_indexes: Sequence[int] = ()  # of a batch the broker refused: those at fault


class UnsupportedVersionError(StreamlogError, code=35, fatal=True):
    """The peer does not speak this version of the request."""


class TopicAlreadyExistsError(StreamlogError, ValueError, code=36):
    """A topic of that name exists; `exist_ok=True` accepts it if partitions, factor and options agree."""


class InvalidPartitionsError(StreamlogError, ValueError, code=37):
    """The number of partitions is below 1, or not above the present one."""


class InvalidReplicationFactorError(StreamlogError, ValueError, code=38):
    """The replication factor is below 1 or above the number of usable brokers."""


class InvalidReplicaAssignmentError(StreamlogError, ValueError, code=39):
    """The replica assignment names unknown or duplicate brokers, or leaves partitions out."""


class ConfigError(StreamlogError, ValueError, code=40):
    """INVALID_CONFIG: an unknown option, a wrong type or a value out of range."""

    option: str | None = None
    value: object = None
    allowed: str | None = None
    suggestion: str | None = None


InvalidConfigError = ConfigError  # Kafka's name for the same fact


class NotControllerError(StreamlogError, code=41, retriable=True):
    """This broker is not the controller (any more)."""


class InvalidRequestError(StreamlogError, ValueError, code=42):
    """The request contradicts itself or breaks the protocol."""


class UnsupportedForMessageFormatError(StreamlogError, code=43):
    """The batch's format cannot carry what the operation needs."""


class PolicyViolationError(StreamlogError, ValueError, code=44):
    """The topic's policy forbids it (for instance deleting records of a compact-only topic)."""


class OutOfOrderSequenceError(StreamlogError, code=45):
    """An idempotent batch is not the next one: an earlier batch is missing. Nothing was written."""


class DuplicateSequenceError(StreamlogError, code=46):
    """The batch was already appended, too long ago to know its offset."""


class InvalidProducerEpochError(StreamlogError, code=47):
    """The producer's epoch is older than the log's: abort the transaction and begin anew."""


class InvalidTxnStateError(StreamlogError, RuntimeError, code=48):
    """The transaction is not in a state that allows this operation."""


class InvalidProducerIdMappingError(StreamlogError, code=49):
    """The transactional id belongs to another producer id than the one given."""


class InvalidTransactionTimeoutError(StreamlogError, ValueError, code=50):
    """`transaction_timeout_ms` is above the cluster's `transaction.max.timeout.ms`."""


class ConcurrentTransactionsError(StreamlogError, code=51, retriable=True):
    """The transaction before is still being completed; ask again."""


class TransactionCoordinatorFencedError(StreamlogError, code=52):
    """A newer transaction coordinator has written; this one must stop."""


class OperationNotAttemptedError(StreamlogError, code=55):
    """Another part of the same request failed first, so this part was not tried."""


class ReassignmentInProgressError(StreamlogError, code=60):
    """The partition is being reassigned; wait for the end or cancel it."""


class UnknownProducerIdError(StreamlogError, LookupError, code=59):
    """The log has forgotten this producer id (its records expired)."""


class NonEmptyGroupError(StreamlogError, code=68):
    """The group has members; it must be empty for this."""


class GroupIdNotFoundError(StreamlogError, LookupError, code=69):
    """No such group."""


class FetchSessionIdNotFoundError(StreamlogError, LookupError, code=70, retriable=True):
    """The broker has dropped this fetch session; begin a new one."""


class InvalidFetchSessionEpochError(StreamlogError, code=71, retriable=True):
    """The fetch session's epoch is not the expected next one."""


class TopicDeletionDisabledError(StreamlogError, code=73):
    """`delete.topic.enable` is false."""


class FencedLeaderEpochError(StreamlogError, code=74, retriable=True):
    """The request's leader epoch is older than the broker's: refresh the metadata."""


class UnknownLeaderEpochError(StreamlogError, code=75, retriable=True):
    """The request's leader epoch is newer than the broker's: it will learn of it."""


class UnsupportedCompressionTypeError(StreamlogError, ValueError, code=76):
    """The codec is unknown, or its library (extra `kafka`) is not installed."""


class StaleBrokerEpochError(StreamlogError, code=77):
    """The broker has registered again since; this message is from its former life."""


class OffsetNotAvailableError(StreamlogError, code=78, retriable=True):
    """A new leader does not know its high watermark yet."""


class MemberIdRequiredError(StreamlogError, code=79):
    """Join again with the member id in the answer."""

    member_id: str | None = None


class PreferredLeaderNotAvailableError(StreamlogError, code=80):
    """The preferred replica is not alive or not in sync."""


class GroupMaxSizeReachedError(StreamlogError, code=81, fatal=True):
    """The group has `group.max.size` members already."""


class FencedInstanceIdError(StreamlogError, code=82, fatal=True):
    """Another member with the same `group_instance_id` took over."""


class EligibleLeadersNotAvailableError(StreamlogError, code=83):
    """No replica is eligible to lead."""


class ElectionNotNeededError(StreamlogError, code=84):
    """The wanted leader leads already."""


class NoReassignmentInProgressError(StreamlogError, LookupError, code=85):
    """The partition is not being reassigned."""


class GroupSubscribedToTopicError(StreamlogError, code=86):
    """The group's members read that topic, so its offsets cannot be deleted."""


class InvalidRecordError(StreamlogError, ValueError, code=87):
    """A record, or another of its batch, breaks a rule of its topic (a compacted one needs keys); none was written."""

    record_indexes: Sequence[int] = ()  # of the batch: those at fault


class UnstableOffsetCommitError(StreamlogError, code=88, retriable=True):
    """The committed offset is part of an open transaction; ask again."""


class ThrottlingQuotaExceededError(StreamlogError, code=89, retriable=True):
    """Over the quota; wait and ask again."""


class ProducerFencedError(StreamlogError, code=90, fatal=True):
    """A newer producer with the same `transactional_id` took over. Close this one."""


class ResourceNotFoundError(StreamlogError, LookupError, code=91):
    """The resource named does not exist."""


class InvalidUpdateVersionError(StreamlogError, code=95):
    """The partition changed meanwhile; the leader's proposal was based on an older version."""


class UnknownTopicIdError(StreamlogError, LookupError, code=100, retriable=True):
    """No topic has that id: it was deleted (and perhaps created again)."""


class DuplicateBrokerRegistrationError(StreamlogError, code=101):
    """A broker of that id is registered and has a session still."""


class BrokerIdNotRegisteredError(StreamlogError, LookupError, code=102):
    """No broker of that id is registered."""


class InconsistentTopicIdError(StreamlogError, code=103, retriable=True):
    """The log on disk belongs to another topic id."""


class InconsistentClusterIdError(StreamlogError, code=104):
    """The message comes from another cluster."""


class TransactionalIdNotFoundError(StreamlogError, LookupError, code=105):
    """No such transactional id."""


class FetchSessionTopicIdError(StreamlogError, code=106, retriable=True):
    """The fetch session mixes topic names and topic ids."""


class IneligibleReplicaError(StreamlogError, code=107):
    """A proposed in-sync replica is fenced or shutting down."""


class NewLeaderElectedError(StreamlogError, code=108):
    """The change was made, and it elected another leader."""


class FencedMemberEpochError(StreamlogError, code=110):
    """The member's epoch is not the group's; give up the partitions and join again."""


class UnreleasedInstanceIdError(StreamlogError, code=111):
    """A living member still holds that `group_instance_id`."""


class UnsupportedAssignorError(StreamlogError, ValueError, code=112):
    """The group's coordinator has no assignor of that name."""


class StaleMemberEpochError(StreamlogError, code=113):
    """The member must learn its new epoch by a heartbeat first."""


class TransactionAbortableError(StreamlogError, code=120):
    """Abort the transaction; the producer stays usable."""


class InvalidRecordStateError(StreamlogError, code=121):
    """The record is not acquired by this share consumer."""


class ShareSessionNotFoundError(StreamlogError, LookupError, code=122, retriable=True):
    """The broker has no such share session."""


class InvalidShareSessionEpochError(StreamlogError, code=123, retriable=True):
    """The share session's epoch is not the expected next one."""


class FencedStateEpochError(StreamlogError, code=124):
    """The share group's state was taken over by a newer owner."""


class InvalidRegularExpressionError(StreamlogError, ValueError, code=128):
    """The subscription's pattern is not a regular expression."""


class ShareSessionLimitReachedError(StreamlogError, code=133, retriable=True):
    """The broker holds as many share sessions as it may."""
