"""Every error streamlog raises: one root, Kafka's names below it, storage and client errors beside them.

    StreamlogError
      Kafka's, by number      OffsetOutOfRangeError 1 ... ShareSessionLimitReachedError 133
      the caller's            ConfigError 40, SerializationError, DeserializationError, ClosedError,
                              UnknownNameError, IllegalStateError, ReentrantCallError, ForeignThreadError,
                              UnsupportedOperationError
      producer's, consumer's  DeliveryError, BufferExhaustedError, CommitFailedError,
                              NoOffsetForPartitionError, LogTruncationError
      simulation's            SimulationStalledError
      the store's             StorageError: ClusterLockedError, ReadOnlyError, DiskFullError, StoreFullError,
                              ReadersFullError, CorruptStoreError, UnsupportedFormatError,
                              NetworkFileSystemError, NotAStreamlogDirectoryError; and StoreForkedError

1. Four class facts tell what to do: `code` (Kafka's number or -1), `retriable` (the same call may succeed
   later), `fatal` (this object is finished: close it, open another), `indefinite` (the write may have
   happened: only an idempotent producer may repeat it blindly).
2. Facts are fields: `raise OffsetOutOfRangeError("...", topic="orders", offset=7)` has `.offset == 7` and
   `.facts`. A fact named like a class fact (`indefinite=False`) overrides it for that one error.
3. Every class is also its standard-library kin (ValueError, LookupError, TimeoutError, OSError, ...); none
   is a KeyError.
4. Every error survives pickling with message, facts and notes (not its cause, as everywhere in Python). A
   fact that cannot be pickled arrives as its repr.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from streamlog.protocol_errors import (
    BrokerIdNotRegisteredError,
    BrokerNotAvailableError,
    ConcurrentTransactionsError,
    ConfigError,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    CorruptRecordError,
    DuplicateBrokerRegistrationError,
    DuplicateSequenceError,
    ElectionNotNeededError,
    EligibleLeadersNotAvailableError,
    FencedInstanceIdError,
    FencedLeaderEpochError,
    FencedMemberEpochError,
    FencedStateEpochError,
    FetchSessionIdNotFoundError,
    FetchSessionTopicIdError,
    GroupIdNotFoundError,
    GroupMaxSizeReachedError,
    GroupSubscribedToTopicError,
    IllegalGenerationError,
    InconsistentClusterIdError,
    InconsistentGroupProtocolError,
    InconsistentTopicIdError,
    IneligibleReplicaError,
    InvalidCommitOffsetSizeError,
    InvalidConfigError,
    InvalidFetchSessionEpochError,
    InvalidGroupIdError,
    InvalidPartitionsError,
    InvalidProducerEpochError,
    InvalidProducerIdMappingError,
    InvalidRecordError,
    InvalidRecordStateError,
    InvalidRegularExpressionError,
    InvalidReplicaAssignmentError,
    InvalidReplicationFactorError,
    InvalidRequestError,
    InvalidRequiredAcksError,
    InvalidSessionTimeoutError,
    InvalidShareSessionEpochError,
    InvalidTimestampError,
    InvalidTopicError,
    InvalidTransactionTimeoutError,
    InvalidTxnStateError,
    InvalidUpdateVersionError,
    LeaderNotAvailableError,
    MemberIdRequiredError,
    NetworkError,
    NewLeaderElectedError,
    NonEmptyGroupError,
    NoReassignmentInProgressError,
    NotControllerError,
    NotCoordinatorError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    NotLeaderOrFollowerError,
    OffsetMetadataTooLargeError,
    OffsetNotAvailableError,
    OffsetOutOfRangeError,
    OperationNotAttemptedError,
    OutOfOrderSequenceError,
    PolicyViolationError,
    PreferredLeaderNotAvailableError,
    ProducerFencedError,
    ReassignmentInProgressError,
    RebalanceInProgressError,
    RecordListTooLargeError,
    RecordTooLargeError,
    ReplicaNotAvailableError,
    ResourceNotFoundError,
    ShareSessionLimitReachedError,
    ShareSessionNotFoundError,
    StaleBrokerEpochError,
    StaleMemberEpochError,
    StreamlogError,
    StreamlogTimeoutError,
    ThrottlingQuotaExceededError,
    TopicAlreadyExistsError,
    TopicDeletionDisabledError,
    TransactionAbortableError,
    TransactionalIdNotFoundError,
    TransactionCoordinatorFencedError,
    UnknownLeaderEpochError,
    UnknownMemberIdError,
    UnknownProducerIdError,
    UnknownServerError,
    UnknownTopicIdError,
    UnknownTopicOrPartitionError,
    UnreleasedInstanceIdError,
    UnstableOffsetCommitError,
    UnsupportedAssignorError,
    UnsupportedCompressionTypeError,
    UnsupportedForMessageFormatError,
    UnsupportedVersionError,
    error_class,
)

if TYPE_CHECKING:
    from streamlog.record import Record

# The caller's. ----------------------------------------------------------------------------------


class SerializationError(StreamlogError, ValueError):
    """A serializer refused the key or value given to `send`. Nothing was sent."""

    topic: str | None = None


class DeserializationError(StreamlogError, ValueError):
    """A stored record cannot be decoded. The position did not move: seek to `next_offset` to skip it."""

    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    next_offset: int | None = None
    record: Record | None = None  # its key and value as bytes


class ClosedError(StreamlogError, RuntimeError, fatal=True):
    """The object was closed before this call."""


class UnknownNameError(StreamlogError, AttributeError):
    """There is no such method or property; the message says which one was probably meant."""

    suggestion: str | None = None


class IllegalStateError(StreamlogError, RuntimeError):
    """The call does not fit what was done before (assign after subscribe, commit without begin, ...)."""


class ReentrantCallError(StreamlogError, RuntimeError):
    """A blocking call from inside streamlog's own turn (a signal handler, `__del__`, a logging handler)."""


class ForeignThreadError(StreamlogError, RuntimeError):
    """A thread that the simulation does not know called in; start it with `simulation.spawn`."""


class UnsupportedOperationError(StreamlogError, NotImplementedError):
    """streamlog, or this backend, cannot do that; the message says what can."""


# The producer's and the consumer's. -------------------------------------------------------------


class DeliveryError(StreamlogError, RuntimeError, indefinite=True):
    """Sends failed whose futures nobody read. The first failure is the cause; `failed` holds the records."""

    count: int = 0
    failed: Sequence[Record] = ()


class BufferExhaustedError(StreamlogTimeoutError, indefinite=False):
    """The producer's buffer stayed full for `max_block_ms`. The record was not taken."""


class CommitFailedError(StreamlogError, RuntimeError):
    """The group went on without this consumer; the cause says how. Poll to rejoin."""


class LogTruncationError(OffsetOutOfRangeError):
    """An unclean election took back records this consumer had read; `next_offset` is where the logs part (KIP-320)."""

    next_offset: int | None = None


class NoOffsetForPartitionError(StreamlogError, LookupError):
    """Nothing committed and `auto_offset_reset="none"`: seek, or choose "earliest" or "latest"."""

    topic: str | None = None
    partition: int | None = None


class SimulationStalledError(StreamlogError, RuntimeError):
    """Every simulated actor waits and only periodic timers fire; the message says who waits for what."""


# The store's. -----------------------------------------------------------------------------------


class StorageError(StreamlogError, OSError):
    """The directory or the engine failed. The broker stays in error until it is opened again."""


class KafkaStorageError(StorageError, code=56, retriable=True, indefinite=True):
    """What a broker with a failed store answers; another replica may serve the request."""


class ClusterLockedError(StorageError, BlockingIOError):
    """Another process owns the directory: stop it, or open with `mode="r"`."""

    errno = errno.EAGAIN
    pid: int | None = None
    path: str | None = None


class ReadOnlyError(StorageError, PermissionError):
    """The cluster was opened with `mode="r"`, or the directory does not allow writing."""

    errno = errno.EACCES


class DiskFullError(StorageError):
    """No space left on the device. The write did not happen and nothing before it is lost."""

    errno = errno.ENOSPC


class StoreFullError(StorageError):
    """`disk_bytes_max` or the map is used up. Nothing was written; retention or a higher limit help."""

    errno = errno.ENOSPC


class ReadersFullError(StorageError, retriable=True):
    """`max_readers` reader slots are taken, also after stale ones were released."""

    errno = errno.EAGAIN


class CorruptStoreError(StorageError, fatal=True):
    """The files contradict their own format (torn, overwritten): run `streamlog verify`, restore a backup."""


class UnsupportedFormatError(StorageError, fatal=True):
    """The directory was written by a newer streamlog: upgrade. It was not touched."""


class NetworkFileSystemError(StorageError):
    """LMDB cannot be trusted on a network file system; `allow_network_fs` overrides at your own risk."""


class NotAStreamlogDirectoryError(StorageError):
    """The path holds something that is not a streamlog cluster. It was not touched."""


class StoreForkedError(StreamlogError, RuntimeError, fatal=True):
    """The store was opened in a parent process: open it again in this one."""


__all__ = [
    "BrokerIdNotRegisteredError",
    "BrokerNotAvailableError",
    "BufferExhaustedError",
    "ClosedError",
    "ClusterLockedError",
    "CommitFailedError",
    "ConcurrentTransactionsError",
    "ConfigError",
    "CoordinatorLoadInProgressError",
    "CoordinatorNotAvailableError",
    "CorruptRecordError",
    "CorruptStoreError",
    "DeliveryError",
    "DeserializationError",
    "DiskFullError",
    "DuplicateBrokerRegistrationError",
    "DuplicateSequenceError",
    "ElectionNotNeededError",
    "EligibleLeadersNotAvailableError",
    "FencedInstanceIdError",
    "FencedLeaderEpochError",
    "FencedMemberEpochError",
    "FencedStateEpochError",
    "FetchSessionIdNotFoundError",
    "FetchSessionTopicIdError",
    "ForeignThreadError",
    "GroupIdNotFoundError",
    "GroupMaxSizeReachedError",
    "GroupSubscribedToTopicError",
    "IllegalGenerationError",
    "IllegalStateError",
    "InconsistentClusterIdError",
    "InconsistentGroupProtocolError",
    "InconsistentTopicIdError",
    "IneligibleReplicaError",
    "InvalidCommitOffsetSizeError",
    "InvalidConfigError",
    "InvalidFetchSessionEpochError",
    "InvalidGroupIdError",
    "InvalidPartitionsError",
    "InvalidProducerEpochError",
    "InvalidProducerIdMappingError",
    "InvalidRecordError",
    "InvalidRecordStateError",
    "InvalidRegularExpressionError",
    "InvalidReplicaAssignmentError",
    "InvalidReplicationFactorError",
    "InvalidRequestError",
    "InvalidRequiredAcksError",
    "InvalidSessionTimeoutError",
    "InvalidShareSessionEpochError",
    "InvalidTimestampError",
    "InvalidTopicError",
    "InvalidTransactionTimeoutError",
    "InvalidTxnStateError",
    "InvalidUpdateVersionError",
    "KafkaStorageError",
    "LeaderNotAvailableError",
    "LogTruncationError",
    "MemberIdRequiredError",
    "NetworkError",
    "NetworkFileSystemError",
    "NewLeaderElectedError",
    "NoOffsetForPartitionError",
    "NoReassignmentInProgressError",
    "NonEmptyGroupError",
    "NotAStreamlogDirectoryError",
    "NotControllerError",
    "NotCoordinatorError",
    "NotEnoughReplicasAfterAppendError",
    "NotEnoughReplicasError",
    "NotLeaderOrFollowerError",
    "OffsetMetadataTooLargeError",
    "OffsetNotAvailableError",
    "OffsetOutOfRangeError",
    "OperationNotAttemptedError",
    "OutOfOrderSequenceError",
    "PolicyViolationError",
    "PreferredLeaderNotAvailableError",
    "ProducerFencedError",
    "ReadOnlyError",
    "ReadersFullError",
    "ReassignmentInProgressError",
    "RebalanceInProgressError",
    "RecordListTooLargeError",
    "RecordTooLargeError",
    "ReentrantCallError",
    "ReplicaNotAvailableError",
    "ResourceNotFoundError",
    "SerializationError",
    "ShareSessionLimitReachedError",
    "ShareSessionNotFoundError",
    "SimulationStalledError",
    "StaleBrokerEpochError",
    "StaleMemberEpochError",
    "StorageError",
    "StoreForkedError",
    "StoreFullError",
    "StreamlogError",
    "StreamlogTimeoutError",
    "ThrottlingQuotaExceededError",
    "TopicAlreadyExistsError",
    "TopicDeletionDisabledError",
    "TransactionAbortableError",
    "TransactionCoordinatorFencedError",
    "TransactionalIdNotFoundError",
    "UnknownLeaderEpochError",
    "UnknownMemberIdError",
    "UnknownNameError",
    "UnknownProducerIdError",
    "UnknownServerError",
    "UnknownTopicIdError",
    "UnknownTopicOrPartitionError",
    "UnreleasedInstanceIdError",
    "UnstableOffsetCommitError",
    "UnsupportedAssignorError",
    "UnsupportedCompressionTypeError",
    "UnsupportedForMessageFormatError",
    "UnsupportedFormatError",
    "UnsupportedOperationError",
    "UnsupportedVersionError",
    "error_class",
]
