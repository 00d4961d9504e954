"""SEMANTICS 3.4, item by item: KIP-101, KIP-279, KIP-320, on real clusters. Brokers are 0, 1, 2 here; 0 leads first."""

from __future__ import annotations

import random
from typing import Any

import pytest

from streamlog.broker import api
from streamlog.broker.fetcher import ReplicaFetcher
from streamlog.broker.replica_requests import (
    AppendAsFollower,
    CopiedPart,
    FetchAnswer,
    FetchPosition,
    FollowerFetch,
)
from streamlog.core.leader_epochs import (
    UNDEFINED_END,
    EpochEnd,
    EpochEntry,
    EpochHistory,
    diverging_end,
    truncation_target,
)
from streamlog.errors import (
    FencedLeaderEpochError,
    LogTruncationError,
    OffsetOutOfRangeError,
    UnknownLeaderEpochError,
)
from streamlog.storage import log
from streamlog.testing.checks import Checks
from tests.spec.replicas import Replicas, replicated

SEEDS = pytest.mark.parametrize("seed", [1, 2, 3])
UNCLEAN: dict[str, object] = {"unclean.leader.election.enable": True}


def history(*entries: tuple[int, int]) -> EpochHistory:
    return EpochHistory(tuple(EpochEntry(*entry) for entry in entries))


def ask(replicas: Replicas, leader: int, follower: int, offset: int, last: int, epoch: int) -> FetchAnswer:
    """One follower's fetch, sent by hand."""
    partition = replicas.replica(leader)
    position = FetchPosition("t", 0, partition.topic_id, offset, last, epoch, 0)
    request = FollowerFetch(follower, [position], replicas.broker(follower).epoch)
    [answer] = replicas.broker(leader).call(request, 1_000)
    assert isinstance(answer, FetchAnswer)
    return answer


# -- 1 ----------------------------------------------------------------------------------------------------------------


@SEEDS
def test_each_batch_is_stamped_with_the_leader_epoch(seed: int) -> None:
    """3.4.1: each batch is stamped with the leader epoch; each replica keeps list (epoch, startOffset)."""
    with replicated(seed) as replicas:
        replicas.append(b"a")
        replicas.crash(0)
        replicas.append(b"b", b"c")
        replicas.start(0)
        replicas.sleep(2)
        for broker_id in (0, 1, 2):
            partition = replicas.replica(broker_id)
            with replicas.broker(broker_id).environment.snapshot() as snapshot:
                stamps = [
                    (stored.header.base_offset, stored.header.leader_epoch)
                    for stored in log.iterate_headers(snapshot, partition.log_id, 0)
                ]
            assert stamps == [(0, 0), (1, 1)]
            assert replicas.epochs(broker_id) == [(0, 0), (1, 1)]


@SEEDS
def test_a_new_leader_enters_its_epoch_at_once_even_without_data(seed: int) -> None:
    """3.4.1: new leader assigns (newEpoch, LEO) immediately, even with no data."""
    with replicated(seed) as replicas:
        replicas.append(b"a")
        replicas.crash(0)
        leader = replicas.partition.leader
        assert leader is not None and replicas.epochs(leader) == [(0, 0), (1, 1)]
        follower = 3 - leader
        replicas.sleep(2)
        assert replicas.epochs(follower) == [(0, 0)], (
            "who follows enters epochs with the batches that carry them"
        )


@SEEDS
def test_the_epoch_list_is_durable(seed: int) -> None:
    """3.4.1, across a crash of the broker: what was stored is what was known."""
    with replicated(seed) as replicas:
        replicas.append(b"a")
        replicas.crash(0)
        replicas.append(b"b")
        before = replicas.epochs(1)
        replicas.crash(2)
        replicas.crash(1)
        replicas.start(1)
        replicas.sleep(1)
        assert replicas.epochs(1)[: len(before)] == before


# -- 2 ----------------------------------------------------------------------------------------------------------------

ENDS = """
asked   answer       why
7       7 @ 50       latest epoch -> LEO
3       3 @ 30       between -> start of next higher
5       4 @ 41       never seen -> the largest below it, start of the next higher
1       1 @ 12       below first -> (requested, start of first higher)
8       undefined    unknown higher -> undefined
-1      undefined    nothing was asked
"""


@pytest.mark.parametrize("row", ENDS.strip().splitlines()[1:], ids=lambda row: row[20:].strip())
def test_the_leader_computes_where_an_epoch_ended(row: str) -> None:
    """3.4.2: leader computes endOffsetFor(epoch)."""
    asked, *answer = row[:20].split()
    expected = UNDEFINED_END if answer == ["undefined"] else EpochEnd(int(answer[0]), int(answer[2]))
    assert history((2, 12), (3, 20), (4, 30), (7, 41)).end_of(int(asked), 50) == expected


@SEEDS
def test_a_follower_never_truncates_to_its_high_watermark(seed: int) -> None:
    """3.4.2: follower never truncates to its HW (old bug): restarted with a watermark behind its end it keeps its log."""
    with replicated(seed) as replicas:
        replicas.append(b"a")
        replicas.cluster.network.drop(0, 2)
        replicas.post(b"b")
        replicas.sleep(0.2)
        assert (replicas.high_watermark(1), replicas.end(1)) == (1, 2)
        replicas.crash(1)
        replicas.cut(0)
        replicas.start(1)
        assert replicas.broker(1).partition("t", 0).state.log_end_offset == 2
        replicas.sleep(1)
        assert replicas.end(1) == 2 and replicas.broker(1).replication.truncations == 0


@SEEDS
def test_a_diverging_answer_has_the_epochs_end_and_no_data(seed: int) -> None:
    """3.4.2: endOffset < fetchOffset: answers divergingEpoch(epoch, endOffset), no data, no HW use."""
    with replicated(seed) as replicas:
        replicas.append(b"a")
        replicas.crash(0)
        replicas.append(b"b")
        replicas.sleep(1)
        leader = replicas.partition.leader
        assert leader is not None
        follower = 3 - leader
        answer = ask(replicas, leader, follower, 2, 0, 1)  # it claims two records of epoch 0; there was one
        assert answer.diverging == EpochEnd(0, 1) and answer.error is None
        progress = replicas.replica(leader).leadership.followers[follower]
        assert progress.last_fetch_ms < replicas.simulation.now_ms, "what diverges acknowledges nothing"
        assert ask(replicas, leader, follower, 2, 1, 1).diverging is None


@SEEDS
def test_an_epoch_the_leader_never_had_diverges_and_brings_no_data(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.4.2: leaderEpoch < fetched epoch: answers divergingEpoch(epoch, endOffset), no data: the follower's
    epoch 1 the leader never had, which has records at that very offset."""
    seen: list[CopiedPart] = []

    def append(parts: list[CopiedPart]) -> AppendAsFollower:
        seen.extend(parts)
        return AppendAsFollower(parts)

    with replicated(seed, brokers=2, config=UNCLEAN) as replicas:
        replicas.append(b"a")
        replicas.sleep(1)
        replicas.cluster.network.drop(0, 1)
        for value in (b"only 0", b"only 0, too"):
            replicas.append(value, acks=1)
        replicas.crash(0)
        replicas.cluster.network.heal()
        replicas.append(b"only 1, epoch 1")
        replicas.crash(1)
        replicas.start(0)
        replicas.append(b"epoch 3")
        assert replicas.high_watermark(0) == 4
        monkeypatch.setattr("streamlog.broker.fetcher.AppendAsFollower", append)
        replicas.start(1)
        replicas.sleep(2)
        told = [part for part in seen if part.diverging is not None]
        assert [(part.position.fetch_offset, part.position.last_fetched_epoch) for part in told] == [(2, 1)]
        assert (told[0].diverging, told[0].batches) == (EpochEnd(0, 3), [])
        replicas.assert_alike()


def test_a_high_watermark_beside_a_divergence_is_not_used() -> None:
    """3.4.2: no HW use, also where nothing is left to be cut."""
    with replicated() as replicas:
        replicas.append(b"a")
        replicas.cluster.network.drop(0, 2)
        replicas.post(b"b")
        replicas.sleep(0.2)
        partition = replicas.replica(1)
        assert (replicas.high_watermark(1), replicas.end(1)) == (1, 2)
        position = FetchPosition("t", 0, partition.topic_id, 2, 0, partition.role_epoch, 0)
        part = CopiedPart(partition, position, [], 2, -1, EpochEnd(0, 2))
        replicas.broker(1).call(AppendAsFollower([part]), 1_000)
        assert (replicas.high_watermark(1), replicas.end(1)) == (1, 2)


def test_a_log_that_claims_an_epoch_the_leader_never_had_diverges_however_short_it_is() -> None:
    """3.4.2: leaderEpoch < fetched epoch: answers divergingEpoch, though its end is not below the fetch offset."""
    leader = history((0, 0), (3, 4))
    assert diverging_end(leader, 9, 1, 2) == EpochEnd(0, 4)
    assert diverging_end(leader, 9, 0, 2) is None


# -- 3 ----------------------------------------------------------------------------------------------------------------

CUTS = """
own epochs          own end  leader says   cut to   why
(0,0)               5        (0,3)         3        the leader's end of a common epoch
(0,0)               5        (0,9)         5        own LEO
(0,0) (1,4)         6        (0,5)         4        own end for that epoch
(0,0) (2,2)         3        (1,2)         2        unknown here: end of the largest smaller epoch (KIP-279)
(0,0) (2,1)         3        (1,2)         1        the same, below what the leader names
(3,0)               3        (1,2)         0        unknown here, and none smaller
"""


@pytest.mark.parametrize("row", CUTS.strip().splitlines()[1:], ids=lambda row: row[51:].strip())
def test_where_a_follower_truncates_to(row: str) -> None:
    """3.4.3: min(leader endOffset, own end offset for that epoch, own LEO); if it does not know the epoch the leader
    named, the end of its largest smaller epoch."""
    own = history(*(eval(entry) for entry in row[:20].split()))
    leader_end = EpochEnd(*eval(row[29:42]))
    assert truncation_target(own, int(row[20:29]), leader_end) == int(row[42:51])


# -- 4 ----------------------------------------------------------------------------------------------------------------


@SEEDS
def test_everything_is_fenced_by_the_current_leader_epoch(seed: int) -> None:
    """3.4.4: older -> FENCED_LEADER_EPOCH, newer -> UNKNOWN_LEADER_EPOCH (retry)."""
    with replicated(seed) as replicas:
        replicas.append(b"a")
        replicas.crash(0)
        leader = replicas.partition.leader
        assert leader is not None
        replicas.sleep(1)
        older = ask(replicas, leader, 3 - leader, 0, 0, 0).error
        newer = ask(replicas, leader, 3 - leader, 0, 0, 2).error
        assert isinstance(older, FencedLeaderEpochError) and older.code == 74
        assert isinstance(newer, UnknownLeaderEpochError) and newer.code == 75 and newer.retriable
        progress = replicas.replica(leader).leadership.followers[3 - leader]
        assert progress.log_end_offset == 1, "what is fenced changes nothing"


@SEEDS
def test_truncation_on_every_epoch_change_not_only_on_leader_change(seed: int) -> None:
    """3.4.4: truncate on every epoch change, not only on leader change (KAFKA-7164): the same leader, poorer."""
    with replicated(seed, brokers=2) as replicas:
        replicas.append(b"a")
        assert replicas.broker(0).flushing.flush()
        replicas.append(b"b")
        replicas.crash(1)
        replicas.crash(0, lose_unsynced=True)
        replicas.start(0)
        replicas.append(b"c")
        assert replicas.partition.leader == 0 and replicas.partition.leader_epoch > 0
        replicas.start(1)
        replicas.sleep(2)
        assert replicas.broker(1).replication.truncations == 1
        assert replicas.values(1) == [b"a", b"c"]
        replicas.assert_alike()


# -- 5, 6, 7: the scenarios -------------------------------------------------------------------------------------------


@SEEDS
def test_scenario_a_loss(seed: int) -> None:
    """3.4.5 (KIP-101 #1): B has both, but HW=1; B restarts; A dies, B leads: it asked A, and keeps m1."""
    with replicated(seed, brokers=2) as replicas:
        replicas.append(b"m0")
        replicas.append(b"m1")
        replicas.crash(1)  # its stored watermark is behind: what it learnt after the last append is not
        replicas.start(1)
        replicas.sleep(2)
        assert replicas.isr == {0, 1}
        replicas.crash(0)
        assert replicas.partition.leader == 1 and replicas.values() == [b"m0", b"m1"]


@SEEDS
def test_scenario_b_divergence(seed: int) -> None:
    """3.4.6 (KIP-101 #2): A, B crash; B had only m0, comes first as leader, writes m1'; A returns with m1 and HW 2:
    epoch end = 1, A truncates m1, refetches m1'."""
    with replicated(seed, brokers=2, config=UNCLEAN) as replicas:
        replicas.append(b"m0")
        replicas.crash(1)
        replicas.append(b"m1")
        assert replicas.high_watermark(0) == 2
        replicas.crash(0)
        replicas.start(1)
        replicas.append(b"m1'")
        replicas.start(0)
        replicas.sleep(2)
        assert replicas.values(0) == replicas.values(1) == [b"m0", b"m1'"]
        assert replicas.broker(0).replication.truncations == 1
        replicas.assert_alike()


@SEEDS
def test_scenario_c_fast_leader_changes(seed: int) -> None:
    """3.4.7 (KIP-279): A -> B -> A -> B; the follower holds an epoch the new leader never saw: two steps."""
    with replicated(seed, brokers=2, config=UNCLEAN) as replicas:
        replicas.append(b"a")
        replicas.sleep(1)
        replicas.cluster.network.drop(0, 1)
        replicas.append(b"only 0, epoch 0", acks=1)
        replicas.crash(0)
        replicas.cluster.network.heal()
        replicas.append(b"only 1, epoch 1")
        replicas.crash(1)
        replicas.start(0)
        replicas.append(b"only 0, epoch 3")
        replicas.crash(0)
        replicas.start(1)
        replicas.append(b"only 1, epoch 5")
        replicas.start(0)
        replicas.sleep(2)
        assert replicas.broker(0).replication.truncations == 2, "epoch 3, then the end of epoch 0"
        assert replicas.values(0) == [b"a", b"only 1, epoch 1", b"only 1, epoch 5"]
        assert replicas.epochs(0) == replicas.epochs(1) == [(0, 0), (1, 1), (5, 2)]
        replicas.assert_alike()


# -- 8: EpochDrivenReplicationProtocolAcceptanceTest --------------------------------------------------------------------


@SEEDS
def test_should_follow_the_leader_epoch_basic_workflow(seed: int) -> None:
    """3.4.8: epoch lists [(0,0)], bounce -> [(0,0),(1,1)], [(0,0),(1,1),(2,2)]."""
    with replicated(seed, brokers=2) as replicas:
        expected = []
        for epoch in range(3):
            replicas.append(b"%d" % epoch)
            replicas.sleep(1)
            expected.append((epoch, epoch))
            assert replicas.epochs(0) == replicas.epochs(1) == expected
            leader = replicas.partition.leader
            assert leader is not None
            replicas.cluster.brokers[leader].stop()
            replicas.start(leader)
            replicas.sleep(2)


@SEEDS
def test_should_not_allow_divergent_logs(seed: int) -> None:
    """3.4.8 shouldNotAllowDivergentLogs: both stop; the leader's disk loses half; it leads on; the other must follow."""
    with replicated(seed, brokers=2) as replicas:
        for number in range(5):
            replicas.append(b"%d" % number)
        assert replicas.broker(0).flushing.flush()
        for number in range(5, 10):
            replicas.append(b"%d" % number)
        replicas.sleep(0.1)
        replicas.cluster.brokers[1].stop()
        replicas.crash(0, lose_unsynced=True)
        replicas.start(0)
        for number in range(10):
            replicas.append(b"a larger message %d" % number)
        replicas.start(1)
        replicas.sleep(2)
        replicas.assert_alike()
        assert len(replicas.values(1)) == 15 and replicas.isr == {0, 1}


@SEEDS
def test_offsets_should_not_go_backwards(seed: int) -> None:
    """3.4.8 offsetsShouldNotGoBackwards: the same with batches of many records: half a batch never stays."""
    with replicated(seed, brokers=2) as replicas:
        replicas.append(*[b"%d" % number for number in range(25)])
        assert replicas.broker(0).flushing.flush()
        replicas.append(*[b"%d" % number for number in range(25, 50)])
        replicas.cluster.brokers[1].stop()
        replicas.crash(0, lose_unsynced=True)
        replicas.start(0)
        for _ in range(3):
            replicas.append(*[b"a larger message %d" % number for number in range(10)])
        replicas.start(1)
        replicas.sleep(2)
        replicas.assert_alike()
        offsets = [record.offset for record in replicas.partition.read(0, 1_000)]
        assert offsets == list(range(55))


@SEEDS
def test_should_survive_fast_leader_change(seed: int) -> None:
    """3.4.8 shouldSurviveFastLeaderChange: the leader bounces again and again under a producer."""
    with replicated(seed, brokers=2) as replicas:
        sent = []
        with replicas.cluster.producer() as producer:
            for number in range(20):
                if number % 4 == 3:
                    leader = replicas.partition.leader
                    if leader is not None:
                        replicas.crash(leader)
                        replicas.start(leader)
                value = b"%d" % number
                producer.send("t", value).result(60)
                sent.append(value)
        replicas.sleep(3)
        assert replicas.values() == sent
        assert replicas.epochs(0) == replicas.epochs(1)
        assert replicas.partition.leader_epoch >= 5
        replicas.assert_alike()


@pytest.mark.parametrize("seed", range(1, 9))
def test_logs_should_not_diverge_on_unclean_leader_elections(seed: int) -> None:
    """3.4.8 logsShouldNotDivergeOnUncleanLeaderElections: whoever comes leads, again and again; then both are alike."""
    chance = random.Random(seed)
    with replicated(seed, brokers=2, config=UNCLEAN) as replicas:
        for number in range(12):
            running = [broker.id for broker in replicas.cluster._backend.brokers]
            if len(running) == 2 and chance.random() < 0.7:
                replicas.crash(chance.choice(running))
            elif len(running) == 1 and chance.random() < 0.7:
                [last] = running
                if chance.random() < 0.5:
                    replicas.crash(last)
                    replicas.start(1 - last)
                else:
                    replicas.start(1 - last)
            if replicas.partition.leader is not None:
                replicas.outcome(replicas.post(b"%d" % number, acks=chance.choice([1, -1])), 30)
        for broker in replicas.cluster.brokers:
            if broker.state == "down":
                broker.start()
        replicas.append(b"the last")
        replicas.sleep(3)
        assert replicas.isr == {0, 1}
        assert replicas.epochs(0) == replicas.epochs(1)
        replicas.assert_alike()


# -- 9 ----------------------------------------------------------------------------------------------------------------


def unclean(replicas: Replicas) -> None:
    """Broker 1, which never saw b, leads uncleanly, and writes c."""
    replicas.append(b"a")
    replicas.crash(1)
    replicas.append(b"b")


@SEEDS
def test_an_unclean_leader_is_alone_in_its_isr_and_recovering(seed: int) -> None:
    """3.4.9: Unclean => ISR=[leader], leaderRecoveryState=RECOVERING; new leader's LEO may be lower."""
    with replicated(seed, brokers=2, config=UNCLEAN) as replicas:
        unclean(replicas)
        replicas.crash(0)
        replicas.start(1)
        image = replicas.cluster._backend.metadata.image.partition("t", 0)
        assert image.leader == 1 and image.isr == (1,) and image.is_recovering
        assert replicas.end(1) == 1
        replicas.start(0)
        replicas.sleep(2)
        image = replicas.cluster._backend.metadata.image.partition("t", 0)
        assert set(image.isr) == {0, 1} and not image.is_recovering


@SEEDS
@pytest.mark.parametrize("policy", ["earliest", "latest", "none"])
def test_a_consumer_finds_the_truncation(seed: int, policy: str) -> None:
    """3.4.9: with reset policy -> seeks to first diverging offset; policy none -> LogTruncationException."""
    with replicated(seed, brokers=2, config=UNCLEAN) as replicas:
        unclean(replicas)
        consumer = replicas.cluster.consumer(auto_offset_reset=policy)
        consumer.assign([("t", 0)])
        consumer.seek_to_beginning()
        assert [record.value for _ in range(3) for record in consumer.poll(1)] == [b"a", b"b"]
        replicas.crash(0)
        replicas.start(1)
        replicas.append(b"c")
        if policy == "none":
            with pytest.raises(LogTruncationError) as caught:
                for _ in range(5):
                    consumer.poll(1)
            assert caught.value.facts["next_offset"] == 1
        else:
            seen = [(record.offset, record.value) for _ in range(5) for record in consumer.poll(1)]
            assert seen == [(1, b"c")]


# -- 10 ---------------------------------------------------------------------------------------------------------------


def check_invariants(replicas: Replicas) -> int:
    """WeakIsr, StrongIsr, LeaderInIsr of KafkaReplication.tla. Returns how many other replicas' records were compared."""
    compared = 0
    of = replicas.cluster._backend.metadata.image.partition("t", 0)
    assert of.leader < 0 or of.leader in of.isr, "LeaderInIsr"
    for broker in replicas.cluster._backend.brokers:
        partition = broker.partitions.get(("t", 0))
        if partition is None or partition.leadership is None:
            continue
        mark = partition.state.high_watermark
        below = [(offset, stored) for offset, stored in replicas.stored(broker.id) if offset < mark]
        weak = [member for member in partition.leadership.isr if member in _running(replicas)]
        strong = [member for member in of.isr if member in _running(replicas)]
        for name, members in (("WeakIsr", weak), ("StrongIsr", strong)):
            if name == "WeakIsr" and partition.leadership.leader_epoch != of.leader_epoch:
                continue  # of the true leader only
            for member in members:
                replicas.broker(member).partition("t", 0)
                held = [entry for entry in replicas.stored(member) if entry[0] < mark]
                assert held == below, f"{name}: {member} lacks what {broker.id} calls committed"
                compared += member != broker.id and bool(below)
    return compared


def _running(replicas: Replicas) -> set[int]:
    return {broker.id for broker in replicas.cluster._backend.brokers}


@pytest.mark.parametrize("seed", [1, 2, *range(4, 11), 12])
def test_invariants_of_the_tla_model(seed: int) -> None:
    """3.4.10: WeakIsr, StrongIsr (everything below any presumed leader's HW is on every member of the true ISR),
    LeaderInIsr."""
    chance = random.Random(seed)
    compared = 0
    with replicated(seed, replica_lag_time_max_ms=3_000, broker_session_timeout_ms=5_000) as replicas:
        for number in range(40):
            handle = replicas.cluster.brokers[chance.randrange(3)]
            step = chance.choice(
                ["append"] * 4 + ["crash", "start", "start", "pause", "resume", "cut", "heal", "sleep"]
            )
            down = sum(broker.state != "running" for broker in replicas.cluster.brokers)
            if step == "append":
                for leader in [b.id for b in replicas.cluster._backend.brokers if not b.paused]:
                    if chance.random() < 0.5:
                        replicas.post(b"%d" % number, to=leader, acks=chance.choice([1, -1]))
            elif step == "crash" and handle.state == "running" and down < 2:
                handle.crash()
            elif step == "start" and handle.state == "down":
                handle.start()
            elif step == "pause" and handle.state == "running" and down < 2:
                handle.pause()
            elif step == "resume" and handle.state == "paused":
                handle.resume()
            elif step == "cut":
                replicas.cut(handle.id)
            elif step == "heal":
                replicas.cluster.network.heal()
            else:
                replicas.sleep(chance.random() * 4)
            compared += check_invariants(replicas)
            replicas.sleep(chance.random() * 0.3)
            compared += check_invariants(replicas)
    assert compared, "another seed: nothing was committed that another replica held"


# -- 11 ---------------------------------------------------------------------------------------------------------------


@SEEDS
def test_a_zombie_leader_can_neither_shrink_nor_advance(seed: int) -> None:
    """3.4.11: ISR update is a CAS at the controller: a zombie leader cannot shrink/expand, so it cannot advance HW
    alone."""
    with replicated(seed, replica_lag_time_max_ms=2_000) as replicas:
        replicas.append(b"a")
        replicas.cut(0)
        pending = replicas.post(b"b", to=0, timeout_ms=120_000)
        replicas.sleep(30)
        zombie = replicas.replica(0)
        assert zombie.leadership is not None and zombie.leadership.isr == (0, 1, 2)
        assert zombie.leadership.proposed_isr is not None, "it would like to"
        assert zombie.state.high_watermark == 1 and not pending.done
        assert replicas.isr == {1, 2}
        replicas.cluster.network.heal()
        replicas.sleep(3)
        assert replicas.isr == {0, 1, 2} and replicas.values() == [b"a"]


# -- 12 ---------------------------------------------------------------------------------------------------------------


@SEEDS
def test_out_of_range_below_the_leaders_start(seed: int) -> None:
    """3.4.12: leader start > own LEO -> drop all, start at leader start."""
    with replicated(seed, brokers=2) as replicas:
        replicas.append(b"a")
        replicas.crash(1)
        replicas.append(b"b")
        replicas.append(b"c")
        replicas.partition.delete_records(2)
        replicas.start(1)
        replicas.sleep(2)
        state = replicas.replica(1).state
        assert (state.log_start_offset, state.high_watermark, state.log_end_offset) == (2, 3, 3)
        assert replicas.values(1) == [b"c"] and replicas.isr == {0, 1}
        assert replicas.broker(1).replication.truncations == 1


@SEEDS
def test_out_of_range_since_the_leader_answered(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """3.4.12, between the answer and the reading of what it promises: nothing is appended behind a gap."""
    read = ReplicaFetcher._read
    with replicated(seed, brokers=2) as replicas:
        checks = Checks(
            replicas.simulation, replicas.cluster
        )  # by the next fetch the gap would be gone again
        checks.deleting("t", 0, 3)
        replicas.append(b"a")
        replicas.crash(1)
        for value in (b"b", b"c", b"d"):
            replicas.append(value)
        deleted: list[Any] = []

        def after_a_deletion(self: Any, source: Any, *rest: Any) -> Any:
            if not deleted:
                deleted.append(source.post(api.DeleteRecords("t", 0, 3)))
                replicas.sleep(0.5)  # until it is trimmed
            return read(self, source, *rest)

        monkeypatch.setattr(ReplicaFetcher, "_read", after_a_deletion)
        replicas.start(1)
        replicas.sleep(2)
        assert deleted and deleted[0].result() == 3
        state = replicas.replica(1).state
        assert (state.log_start_offset, state.log_end_offset) == (3, 4)
        replicas.assert_alike()


@SEEDS
def test_out_of_range_behind_the_leaders_end(seed: int) -> None:
    """3.4.12: leader LEO < own LEO -> truncate to it."""
    with replicated(seed, brokers=2) as replicas:
        for value in (b"a", b"b", b"c"):
            replicas.append(value)
        partition = replicas.replica(1)
        replicas.cut(1)  # what it fetches next does not hide what the cut did
        position = FetchPosition(
            partition.topic,
            0,
            partition.topic_id,
            partition.state.log_end_offset,
            partition.epochs.epoch_of(partition.state.log_end_offset - 1),
            partition.role_epoch,
            0,
        )
        [fetcher] = replicas.cluster._backend.peers._fetchers[1][0]
        error = OffsetOutOfRangeError("behind", log_start_offset=0, log_end_offset=1)
        part = fetcher._on_error(partition, position, error)
        assert part is not None
        replicas.broker(1).call(AppendAsFollower([part]), 1_000)
        assert replicas.end(1) == 1 and replicas.high_watermark(1) <= 1
        assert replicas.values(1) == [b"a"]


def test_out_of_range_of_an_epoch_the_leader_never_saw_cuts_nothing() -> None:
    """3.4.12: else keep and retry. The leader knows nothing of our epoch, yet reaches as far as we do."""
    assert diverging_end(history((0, 0)), 5, 3, 4) == UNDEFINED_END
    with replicated(brokers=2) as replicas:
        replicas.append(b"a")
        replicas.sleep(1)
        broker, partition = replicas.broker(1), replicas.replica(1)
        partition.epochs = history((0, 0), (9, 0))  # as no controller ever gave it
        replicas.append(b"b", acks=1)
        replicas.sleep(1)
        assert replicas.values(1) == [b"a"] and broker.replication.truncations == 0
        partition.epochs = history((0, 0))
        replicas.sleep(1)
        assert replicas.values(1) == [b"a", b"b"]
