"""`streamlog dump`: what a partition's log really holds, batch by batch; damaged ones too. Works beside a
live owner.
"""

from __future__ import annotations

import argparse
from typing import Any, Final

import msgspec

from streamlog.batch import MAGIC_COLUMNAR, Batch
from streamlog.cli.arguments import Commands, add_command, whole
from streamlog.cli.formats import full, record_document
from streamlog.cli.opening import partitions_of, reading, topic_of
from streamlog.cli.terminal import Terminal, size, when
from streamlog.errors import StreamlogError
from streamlog.storage.verification import Dumped
from streamlog.wording import plural

DESCRIPTION: Final = """\
headers   the header of each batch, whether its body is sound or not
batches   headers, and whether the CRC matches and the records decode (default)
records   every record, below the line of its batch

Below the log start offset it also shows batches that wait to be deleted. --json writes one object a line."""

CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")


def add_parser(commands: Commands) -> None:
    """Add `dump`."""
    parser = add_command(commands, "dump", run, "show the stored batches and records of a topic", DESCRIPTION)
    parser.add_argument(
        "topic", metavar="TOPIC", help="a topic, or an internal one such as __consumer_offsets"
    )
    parser.add_argument(
        "--show",
        choices=("headers", "batches", "records"),
        default="batches",
        help="how deep (default batches)",
    )
    parser.add_argument(
        "--partition",
        type=whole(0),
        action="append",
        metavar="N",
        help="only this partition (may be repeated)",
    )
    parser.add_argument(
        "--from", dest="start", type=whole(0), default=0, metavar="OFFSET", help="the first offset to show"
    )
    parser.add_argument("--max", "-n", type=whole(1), metavar="N", help="at most so many batches")


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    encode = msgspec.json.Encoder().encode
    shown = wrong = 0
    with reading(arguments) as cluster:
        topic = topic_of(cluster, arguments.topic, arguments.dir)
        for number in partitions_of(topic, arguments.partition):
            if not terminal.json and len(topic) > 1 and not arguments.partition:
                terminal.line(f"-- {topic.name}-{number}")
            for found in cluster.dump(topic.name, number, arguments.start):
                if arguments.max is not None and shown >= arguments.max:
                    return 0
                shown += 1
                document = describe(found, topic.name, number, arguments.show)
                wrong += "error" in document
                if terminal.json:
                    if arguments.show == "records":
                        document["records"] = [
                            record_document(r) for r in _records(found, topic.name, number)
                        ]
                    terminal.out.write(encode(document) + b"\n")
                    continue
                terminal.line(_line(document))
                if arguments.show == "records":
                    for record in _records(found, topic.name, number):
                        terminal.out.write(b"    " + full(record) + b"\n")
    if not terminal.json and not shown:
        terminal.note(f"{arguments.topic} holds nothing from offset {arguments.start} on")
    if wrong:
        terminal.warn(
            f"streamlog: {plural(wrong, 'batch')} damaged; `streamlog verify --dir {arguments.dir}` has "
            "the details"
        )
    return 0


def describe(found: Dumped, topic: str, number: int, depth: str) -> dict[str, Any]:
    """A batch as JSON has it. `error` is there if something is wrong with it."""
    document: dict[str, Any] = {
        "topic": topic,
        "partition": number,
        "last_offset": found.last_offset,
        "bytes": found.size_bytes,
    }
    header = found.header
    if header is not None:
        document |= {
            "base_offset": header.base_offset,
            "records_count": header.record_count,
            "layout": "columnar" if header.magic == MAGIC_COLUMNAR else f"v{header.magic}",
            "codec": CODECS[header.codec],
            "leader_epoch": header.leader_epoch,
            "base_timestamp": header.base_timestamp,
            "max_timestamp": header.max_timestamp,
            "running_max_timestamp": found.running_max_timestamp,
            "timestamp_type": "LogAppendTime" if header.is_log_append_time else "CreateTime",
            "producer_id": header.producer_id,
            "producer_epoch": header.producer_epoch,
            "base_sequence": header.base_sequence,
            "transactional": header.is_transactional,
            "control": header.is_control,
            "delete_horizon_ms": header.delete_horizon_ms,
            "crc": f"{header.crc:08x}",
        }
    if depth == "headers" and header is not None:
        return document
    error = found.error or _undecodable(found.batch)
    return document | ({"error": error} if error else {"sound": True})


def _undecodable(batch: Batch | None) -> str:
    try:
        if batch is not None:
            batch.columns()
    except StreamlogError as error:
        return str(error)
    return ""


def _records(found: Dumped, topic: str, number: int) -> list[Any]:
    if found.batch is None:
        return []
    try:
        return found.batch.records(topic, number, 0)
    except StreamlogError:
        return []  # said in the batch's own line


def _line(document: dict[str, Any]) -> str:
    if "layout" not in document:
        return f"..{document['last_offset']}  {size(document['bytes'])}  no header: {document['error']}"
    parts = [
        f"{document['base_offset']}..{document['last_offset']}",
        plural(document["records_count"], "record"),
        size(document["bytes"]),
        document["layout"] + ("" if document["codec"] == "none" else f" {document['codec']}"),
        f"epoch {document['leader_epoch']}",
        when(document["max_timestamp"]),
        f"crc {document['crc']}",
    ]
    if document["producer_id"] >= 0:
        parts.append(
            f"producer {document['producer_id']}/{document['producer_epoch']} sequence "
            f"{document['base_sequence']}"
        )
    parts += [word for word in ("transactional", "control") if document[word]]
    if "error" in document:
        parts.append(f"DAMAGED: {document['error']}")
    elif "sound" in document:
        parts.append("ok")
    return "  ".join(parts)
