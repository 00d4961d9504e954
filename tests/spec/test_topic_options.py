"""Topic options and what the broker does by them: compression.type, deletion (SEMANTICS 1.1, 2.1; KIP-390, KIP-322)."""

from __future__ import annotations

import pytest

import streamlog
from streamlog import Cluster
from streamlog.batch import Codec, seal_columnar
from streamlog.broker import api
from streamlog.errors import (
    RecordTooLargeError,
    TopicDeletionDisabledError,
    UnknownTopicOrPartitionError,
)

WORDS = b"the same words again and again, " * 20


def stored(cluster: Cluster, topic: str) -> list[tuple[Codec, int]]:
    """Codec and record count of every batch of partition 0."""
    broker = cluster._backend.broker
    _, batches = broker.reader.read(broker.partition(topic, 0), 0, 1 << 30)
    return [(batch.codec, batch.record_count) for batch in batches]


# -- compression.type --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", ["none", "gzip", "zstd"])
def test_producer_keeps_what_the_producer_chose(chosen: str) -> None:
    with streamlog.open(":memory:", sync="off") as cluster:
        cluster.create_topic("t")
        with cluster.producer(compression=chosen) as producer:
            producer.send_many("t", [(b"k", WORDS)] * 3)
        assert stored(cluster, "t") == [(Codec[chosen.upper()], 3)]


@pytest.mark.parametrize(
    ("option", "codec"), [("uncompressed", Codec.NONE), ("gzip", Codec.GZIP), ("zstd", Codec.ZSTD)]
)
@pytest.mark.parametrize("chosen", ["none", "gzip", "zstd"])
def test_any_other_value_recodes(option: str, codec: Codec, chosen: str) -> None:
    with streamlog.open(":memory:", sync="off") as cluster:
        topic = cluster.create_topic("t", config={"compression.type": option})
        # A level is the producer's codec's own: gzip knows no level 12.
        level = {"zstd": 12}.get(chosen)
        with cluster.producer(compression=chosen, compression_level=level) as producer:
            producer.send_many("t", [(b"k", WORDS), (None, None)])
            producer.send("t", WORDS, headers=[("h", b"1")])
        assert {found for found, _ in stored(cluster, "t")} == {codec}
        assert [(r.offset, r.key, r.value, r.headers) for r in topic[0].read(0)] == [
            (0, b"k", WORDS, ()),
            (1, None, None, ()),
            (2, None, WORDS, (("h", b"1"),)),
        ]


@pytest.mark.parametrize("chosen", [Codec.NONE, Codec.GZIP, Codec.ZSTD])
def test_the_broker_recodes_for_who_did_not_ask(chosen: Codec) -> None:
    """A batch as another client would send it, straight into the inbox."""
    with streamlog.open(":memory:", sync="off") as cluster:
        topic = cluster.create_topic("t", config={"compression.type": "zstd"})
        batch = seal_columnar(None, [WORDS, b"x"], timestamps=5, codec=chosen)
        cluster._backend.broker.call(api.Produce([("t", 0, batch)]))
        assert stored(cluster, "t") == [(Codec.ZSTD, 2)]
        assert [record.value for record in topic[0].read(0)] == [WORDS, b"x"]


def test_a_batch_that_recoding_makes_too_large_is_refused() -> None:
    with streamlog.open(":memory:", sync="off") as cluster:
        config = {"compression.type": "uncompressed", "max.message.bytes": 1_000}
        topic = cluster.create_topic("t", config=config)
        batch = seal_columnar(None, [WORDS * 4], timestamps=5, codec=Codec.ZSTD)
        assert batch.size_bytes < 1_000
        (answer,) = cluster._backend.broker.call(api.Produce([("t", 0, batch)]))
        assert isinstance(answer.error, RecordTooLargeError) and answer.error.facts["allowed_bytes"] == 1_000
        assert topic[0].log_end_offset == 0


def test_the_codec_follows_the_option_from_the_next_batch_on() -> None:
    with streamlog.open(":memory:", sync="off", config={"compression.type": "gzip"}) as cluster:
        topic = cluster.create_topic("t")  # the cluster's default
        with cluster.producer() as producer:
            producer.send("t", WORDS).result()
            for option in ("zstd", "producer"):
                topic.alter_config({"compression.type": option})
                producer.send("t", WORDS).result()
        assert [codec for codec, _ in stored(cluster, "t")] == [Codec.GZIP, Codec.ZSTD, Codec.NONE]


# -- delete.topic.enable -----------------------------------------------------------------------------------


def test_deleting_is_refused_where_it_is_disabled() -> None:
    with streamlog.open(":memory:", sync="off", config={"delete.topic.enable": "false"}) as cluster:
        topic = cluster.create_topic("t")
        for delete in (lambda: cluster.delete_topic("t"), topic.delete, lambda: cluster.delete_topic("none")):
            with pytest.raises(TopicDeletionDisabledError, match="delete_topic_enable=False") as caught:
                delete()
            assert caught.value.code == 73
        with cluster.producer() as producer:
            assert producer.send("t", b"x").result().offset == 0
    with streamlog.open(":memory:", sync="off") as cluster:
        cluster.create_topic("t")
        cluster.delete_topic("t")
        with pytest.raises(UnknownTopicOrPartitionError):
            cluster.delete_topic("t")
