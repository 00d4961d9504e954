"""errors.py and protocol_errors.py: every class, its kin, its number, and its way through pickle."""

from __future__ import annotations

import copy
import errno
import inspect
import pickle
import threading

import pytest

from streamlog import errors, protocol_errors
from streamlog.errors import ConfigError, DeliveryError, OffsetOutOfRangeError, StreamlogError, error_class
from streamlog.record import Record

CLASSES = sorted(
    {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, StreamlogError)},
    key=lambda cls: cls.__name__,
)
FACTS = {"topic": "orders", "partition": 3, "offset": 42, "records": [Record(value=b"x")], "path": "/data"}

# What Kafka's Errors.java says: number, class, retriable.
KAFKA = """
 -1 UnknownServerError                 no  |   1 OffsetOutOfRangeError              no
  2 CorruptRecordError                 yes |   3 UnknownTopicOrPartitionError       yes
  5 LeaderNotAvailableError            yes |   6 NotLeaderOrFollowerError           yes
  7 StreamlogTimeoutError              yes |  10 RecordTooLargeError                no
 12 OffsetMetadataTooLargeError        no  |  14 CoordinatorLoadInProgressError     yes
 15 CoordinatorNotAvailableError       yes |  16 NotCoordinatorError                yes
 17 InvalidTopicError                  no  |  18 RecordListTooLargeError            no
 19 NotEnoughReplicasError             yes |  20 NotEnoughReplicasAfterAppendError  yes
 21 InvalidRequiredAcksError           no  |  22 IllegalGenerationError             no
 23 InconsistentGroupProtocolError     no  |  24 InvalidGroupIdError                no
 25 UnknownMemberIdError               no  |  26 InvalidSessionTimeoutError         no
 27 RebalanceInProgressError           no  |  32 InvalidTimestampError              no
 35 UnsupportedVersionError            no  |  36 TopicAlreadyExistsError            no
 37 InvalidPartitionsError             no  |  38 InvalidReplicationFactorError      no
 40 ConfigError                        no  |  41 NotControllerError                 yes
 42 InvalidRequestError                no  |  44 PolicyViolationError               no
 45 OutOfOrderSequenceError            no  |  46 DuplicateSequenceError             no
 47 InvalidProducerEpochError          no  |  48 InvalidTxnStateError               no
 49 InvalidProducerIdMappingError      no  |  50 InvalidTransactionTimeoutError     no
 51 ConcurrentTransactionsError        yes |  56 KafkaStorageError                  yes
 59 UnknownProducerIdError             no  |  68 NonEmptyGroupError                 no
 69 GroupIdNotFoundError               no  |  74 FencedLeaderEpochError             yes
 75 UnknownLeaderEpochError            yes |  76 UnsupportedCompressionTypeError    no
 78 OffsetNotAvailableError            yes |  79 MemberIdRequiredError              no
 80 PreferredLeaderNotAvailableError   no  |  81 GroupMaxSizeReachedError           no
 82 FencedInstanceIdError              no  |  83 EligibleLeadersNotAvailableError   no
 84 ElectionNotNeededError             no  |  86 GroupSubscribedToTopicError        no
 87 InvalidRecordError                 no  |  88 UnstableOffsetCommitError          yes
 90 ProducerFencedError                no  |  95 InvalidUpdateVersionError          no
100 UnknownTopicIdError                yes | 103 InconsistentTopicIdError           yes
107 IneligibleReplicaError             no  | 108 NewLeaderElectedError              no
110 FencedMemberEpochError             no  | 111 UnreleasedInstanceIdError          no
112 UnsupportedAssignorError           no  | 113 StaleMemberEpochError              no
120 TransactionAbortableError          no  | 121 InvalidRecordStateError            no
122 ShareSessionNotFoundError          yes | 123 InvalidShareSessionEpochError      yes
124 FencedStateEpochError              no  | 128 InvalidRegularExpressionError      no
133 ShareSessionLimitReachedError      yes
"""
KAFKA_ROWS = [row.split() for line in KAFKA.split("\n") for row in line.split("|") if row.strip()]

KIN = [
    (errors.UnknownTopicOrPartitionError, LookupError),
    (errors.OffsetOutOfRangeError, LookupError),
    (errors.GroupIdNotFoundError, LookupError),
    (errors.NoOffsetForPartitionError, LookupError),
    (errors.InvalidTopicError, ValueError),
    (errors.RecordTooLargeError, ValueError),
    (errors.InvalidRecordError, ValueError),
    (errors.ConfigError, ValueError),
    (errors.SerializationError, ValueError),
    (errors.DeserializationError, ValueError),
    (errors.StreamlogTimeoutError, TimeoutError),
    (errors.BufferExhaustedError, TimeoutError),
    (errors.ClosedError, RuntimeError),
    (errors.ReentrantCallError, RuntimeError),
    (errors.IllegalStateError, RuntimeError),
    (errors.StoreForkedError, RuntimeError),
    (errors.UnsupportedOperationError, NotImplementedError),
    (errors.NetworkError, ConnectionError),
    (errors.StorageError, OSError),
    (errors.ClusterLockedError, BlockingIOError),
    (errors.ReadOnlyError, PermissionError),
    (errors.DiskFullError, OSError),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_survives_pickling_with_its_facts(cls: type[StreamlogError], protocol: int) -> None:
    error = cls("what happened", **FACTS)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is cls
    assert str(again) == "what happened" and again.args == ("what happened",)
    assert again.facts == FACTS
    assert (again.topic, again.offset, again.records) == ("orders", 42, [Record(value=b"x")])


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_is_documented_exported_and_no_key_error(cls: type[StreamlogError]) -> None:
    assert cls.__doc__ and (cls is StreamlogError or cls.__doc__ != StreamlogError.__doc__)
    assert cls.__name__ in errors.__all__ and cls.__name__.endswith("Error")
    assert not issubclass(cls, KeyError)
    assert "__init__" not in vars(cls) or cls is StreamlogError
    assert str(cls()) == ""


def test_all_names_exist_and_nothing_of_the_second_module_is_forgotten() -> None:
    assert all(hasattr(errors, name) for name in errors.__all__)
    declared = {
        name for name, cls in vars(protocol_errors).items() if inspect.isclass(cls) and cls in CLASSES
    }
    assert declared <= set(errors.__all__)


@pytest.mark.parametrize(("code", "name", "retriable"), KAFKA_ROWS, ids=[row[1] for row in KAFKA_ROWS])
def test_kafkas_numbers(code: str, name: str, retriable: str) -> None:
    cls = error_class(int(code))
    assert cls.__name__ == name
    assert cls.code == int(code)
    assert cls.retriable is (retriable == "yes")


def test_each_number_is_declared_once() -> None:
    declared = {cls.__name__: cls.code for cls in CLASSES if "code" in vars(cls) and cls.code != -1}
    assert len(set(declared.values())) == len(declared)
    assert all(error_class(code).__name__ == name for name, code in declared.items())


def test_unknown_numbers_and_zero() -> None:
    assert error_class(9_999) is errors.UnknownServerError
    with pytest.raises(ValueError, match="no error"):
        error_class(0)


@pytest.mark.parametrize(("cls", "kin"), KIN, ids=lambda cls: cls.__name__)
def test_standard_library_kin(cls: type[StreamlogError], kin: type[Exception]) -> None:
    assert issubclass(cls, StreamlogError) and issubclass(cls, kin)
    with pytest.raises(kin, match="text"):
        raise cls("text")


def test_what_may_have_happened_is_marked() -> None:
    indefinite = {cls.__name__ for cls in CLASSES if cls.indefinite}
    assert indefinite == {
        "DeliveryError",
        "KafkaStorageError",
        "NetworkError",
        "NotEnoughReplicasAfterAppendError",
        "StreamlogTimeoutError",
    }
    assert not errors.BufferExhaustedError.indefinite and errors.BufferExhaustedError.code == 7


def test_fatal_ones() -> None:
    assert (
        errors.ProducerFencedError.fatal and errors.FencedInstanceIdError.fatal and errors.ClosedError.fatal
    )
    assert not errors.TransactionAbortableError.fatal and not errors.InvalidProducerEpochError.fatal


def test_facts_are_fields_and_missing_ones_have_defaults() -> None:
    error = OffsetOutOfRangeError("offset 7 of orders-0 is gone", topic="orders", offset=7)
    assert (error.topic, error.offset, error.log_start_offset) == ("orders", 7, None)
    assert DeliveryError().failed == () and DeliveryError().count == 0
    with pytest.raises(AttributeError):
        _ = error.nonsense


def test_a_fact_may_override_a_class_fact_for_one_error() -> None:
    error = errors.StreamlogTimeoutError("nothing was sent", indefinite=False)
    assert not error.indefinite and errors.StreamlogTimeoutError.indefinite
    assert not pickle.loads(pickle.dumps(error)).indefinite


@pytest.mark.parametrize("name", ["args", "facts", "with_traceback", "__class__"])
def test_a_fact_may_not_hide_the_machinery(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        StreamlogError("x", **{name: 1})


def test_unpicklable_facts_arrive_as_text() -> None:
    again = pickle.loads(pickle.dumps(ConfigError("x", value=threading.Lock(), option="linger_ms")))
    assert again.option == "linger_ms" and "lock" in again.value


def test_notes_and_later_attributes_survive() -> None:
    error = StreamlogError("x", offset=1)
    error.__notes__ = ["seen by the test"]
    error.seen = 5
    again = pickle.loads(pickle.dumps(error))
    assert again.__notes__ == ["seen by the test"] and again.seen == 5 and again.facts == {"offset": 1}


def test_copies_keep_facts() -> None:
    error = copy.copy(OffsetOutOfRangeError("x", offset=1))
    assert type(error) is OffsetOutOfRangeError and error.offset == 1
    assert copy.deepcopy(error).facts == {"offset": 1}


def test_subclasses_of_users_pickle_too() -> None:
    again = pickle.loads(pickle.dumps(UserError("x", why="because")))
    assert (
        type(again) is UserError and again.why == "because" and again.code == 3 and again.retriable is False
    )


class UserError(errors.UnknownTopicOrPartitionError, retriable=False):
    """Somebody's own."""


def test_operating_system_numbers() -> None:
    assert errors.DiskFullError("x").errno == errno.ENOSPC
    assert errors.StorageError("x", errno=errno.EIO).errno == errno.EIO
    assert str(errors.StorageError("text", errno=errno.EIO, strerror="I/O")) == "text"
    assert pickle.loads(pickle.dumps(errors.StorageError("x", errno=errno.EIO))).errno == errno.EIO


def test_kafkas_name_for_config_errors_is_the_same_class() -> None:
    assert errors.InvalidConfigError is ConfigError
