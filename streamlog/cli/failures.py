"""Exit codes, and how an error becomes one paragraph that says what to do next."""

from __future__ import annotations

import os
from typing import Final

from streamlog import errors

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
LOCKED: Final = 3
DAMAGED: Final = 4
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
TERMINATED: Final = 143

READING_COMMANDS: Final = (
    "consume (without --group), topics list and describe, groups list and describe, groups reset-offsets --dry-run, "
    "dump, verify and backup"
)


class CommandError(Exception):
    """A command cannot do what it was asked to; the message is what the user reads."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(CommandError):
    """The command line is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(message, USAGE)


class Terminated(BaseException):
    """SIGTERM arrived: end as after Ctrl-C, with its own exit code."""


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the paragraph for an error."""
    match error:
        case CommandError():
            return error.exit_code, str(error)
        case errors.ClusterLockedError():
            return LOCKED, _locked(error)
        case errors.ConfigError():
            return USAGE, str(error)
        case errors.NotAStreamlogDirectoryError() | errors.NetworkFileSystemError():
            return FAILED, f"{error}. Name another directory with --dir"
        case errors.UnsupportedFormatError() | errors.StoreFullError():
            return FAILED, str(error)
        case errors.DiskFullError():
            return FAILED, f"{error}. Nothing written before was lost: make room and run the command again"
        case errors.CorruptRecordError() if "next_offset" in error.facts:
            return FAILED, _corrupt(error)
        case errors.CorruptStoreError() | errors.CorruptRecordError():
            return (
                FAILED,
                f"{error}. `streamlog verify` lists all damage; a copy made by `streamlog backup` can "
                "replace the directory",
            )
        case errors.UnknownTopicOrPartitionError():
            return FAILED, f"{error}. `streamlog topics list` shows what there is"
        case errors.TopicAlreadyExistsError() if "existing" in error.facts:
            return FAILED, _another_topic(error)
        case errors.NonEmptyGroupError():
            return FAILED, f"{error}. Stop its consumers first"
        case errors.StreamlogError():
            return FAILED, str(error) or type(error).__name__
        case OSError():
            return FAILED, os_error(error)
        case MemoryError():
            return FAILED, "out of memory"
        case _:
            return FAILED, (
                f"unexpected {type(error).__name__}: {error}. This is a bug in streamlog; run the command "
                "again with --debug and "
                "report what it prints"
            )


def os_error(error: OSError) -> str:
    """An operating system error as words: what could not be used, and why."""
    reason = error.strerror or str(error)
    if error.filename is None:
        return reason
    return f"cannot use {os.fsdecode(error.filename)}: {reason}"


def _another_topic(error: errors.TopicAlreadyExistsError) -> str:
    """A topic is there, but not as the options of a command have it."""
    topic, name, value, existing = (error.facts[key] for key in ("topic", "option", "value", "existing"))
    flag = {"partitions": "--partitions", "replication_factor": "--replication-factor"}.get(
        str(name), f"--config {name}"
    )
    changes = "" if name == "replication_factor" else "; `streamlog topics alter` changes it"
    return f"topic {topic!r} exists with {name}={existing}, not {value}; leave {flag} out to use it as it is{changes}"


def _corrupt(error: errors.CorruptRecordError) -> str:
    """A damaged batch, and the ways past it and back to a whole one."""
    facts = error.facts
    topic, number, behind = facts["topic"], facts["partition"], facts["next_offset"]
    why = "" if error.__cause__ is None else f": {error.__cause__}"
    return (
        f"{topic}-{number} is corrupt at offset {facts['offset']}, up to {facts['last_offset']}{why}. The rest is "
        f"readable: `streamlog consume {topic} --partition {number} --from {behind}` goes on behind it, a group after "
        f"`streamlog groups reset-offsets GROUP --topic {topic} --partition {number} --to {behind}`. `streamlog verify` "
        "lists all damage; a copy made by `streamlog backup` can replace the directory"
    )


def _locked(error: errors.ClusterLockedError) -> str:
    process = getattr(error, "process", "")
    host = getattr(error, "host", "")
    who = f"process {error.pid or '(unknown)'}" + (f" ({process})" if process else "")
    if host and host != os.uname().nodename:
        who += f" on {host}"
    text = (
        f"{error.path} is open in {who}, and a directory has one owner at a time. Stop that process and try "
        "again; beside it only "
        f"the reading commands work: {READING_COMMANDS}"
    )
    listener = getattr(error, "listener", "")
    return text + (
        f". Any Kafka client can also write through its listener at {listener}" if listener else ""
    )
