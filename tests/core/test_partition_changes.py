"""How one partition changes: leaders, the last in-sync member, reassignments, epochs."""

from __future__ import annotations

from itertools import permutations, product

import pytest

from streamlog.core import partition_changes
from streamlog.core.cluster_image import NO_LEADER, PartitionsChanged, TopicImage
from streamlog.core.partition_changes import (
    ChangedPartitions,
    Election,
    by_override,
    change_partition,
    choose_leader,
    without,
)
from tests.core.clusters import EPOCHS, check_epochs, cluster, digits, ids, partition

# A partition, who is no longer alive, what is elected for; what it becomes, and which epochs rise (l, p).
LEAVING = """
leader replicas isr | dead election  | leader isr recovering | epochs
0      012      012 | -    online    | 0      012 no         | -
0      012      012 | 2    online    | 0      01  no         | p
0      012      012 | 0    online    | 1      12  no         | lp
0      021      012 | 0    online    | 2      12  no         | lp
0      012      02  | 0    online    | 2      2   no         | lp
0      012      0   | 0    online    | -      0   no         | lp
0      012      0   | 12   online    | 0      0   no         | -
-      012      0   | 0    online    | -      0   no         | -
-      012      0   | -    online    | 0      0   no         | lp
2      012      012 | -    online    | 2      012 no         | -
2      012      012 | 2    online    | 0      01  no         | lp
2      012      12  | 2    online    | 1      1   no         | lp
0      012      012 | 012  online    | -      0   no         | lp
1      012      012 | 012  online    | -      1   no         | lp
-      012      1   | 012  online    | -      1   no         | -
2      012      012 | -    preferred | 0      012 no         | lp
2      012      12  | -    preferred | 2      12  no         | -
2      012      012 | 0    preferred | 2      12  no         | p
2      012      012 | 02   preferred | 1      1   no         | lp
-      012      1   | 1    preferred | -      1   no         | -
-      012      1   | 0    preferred | 1      1   no         | lp
0      012      012 | 0    unclean   | 1      12  no         | lp
0      012      0   | 0    unclean   | 1      1   yes        | lp
0      012      0   | 01   unclean   | 2      2   yes        | lp
-      012      0   | 0    unclean   | 1      1   yes        | lp
-      012      0   | -    unclean   | 0      0   no         | lp
0      012      0   | 012  unclean   | -      0   no         | lp
0      012      012 | -    unclean   | 0      012 no         | -
"""


@pytest.mark.parametrize("row", LEAVING.strip().splitlines()[1:])
def test_a_broker_that_is_not_alive_leaves(row: str) -> None:
    given, event, expected, epochs = ([*cells.split()] for cells in row.split("|"))
    dead, election = ids(event[0]), Election(event[1])
    before = partition(*given)
    after = change_partition(
        before, lambda broker_id: broker_id not in dead, election, isr=without(before.isr, dead)
    )
    leader = "-" if after.leader == NO_LEADER else str(after.leader)
    assert [leader, digits(after.isr), "yes" if after.is_recovering else "no"] == expected
    rises = (after.leader_epoch - EPOCHS[0], after.partition_epoch - EPOCHS[1])
    assert rises == ("l" in epochs[0], "p" in epochs[0])
    assert (after is before) == (rises == (0, 0))


# A reassignment under way, and the ISR that is reached. Nobody is dead.
COMPLETING = """
leader replicas adding removing | isr  | leader replicas isr adding removing | epochs
0      201      2      -        | 01   | 0      201      01  2      -        | -
0      201      2      -        | 012  | 0      201      012 -      -        | p
0      2301     23     01       | 01   | 0      2301     01  23     01       | -
0      2301     23     01       | 012  | 0      2301     012 23     01       | p
0      2301     23     01       | 0123 | 2      23       23  -      -        | lp
0      2301     23     01       | 023  | 2      23       23  -      -        | lp
0      2301     23     01       | 230  | 2      23       23  -      -        | lp
2      2301     23     01       | 0123 | 2      23       23  -      -        | lp
0      012      -      12       | 01   | 0      0        0   -      -        | lp
1      012      -      12       | 12   | 1      012      12  -      12       | -
1      012      -      12       | 012  | 0      0        0   -      -        | lp
0      3012     32     12       | 013  | 0      30       03  -      -        | lp
"""


@pytest.mark.parametrize("row", COMPLETING.strip().splitlines()[1:])
def test_a_reassignment_completes_once_all_targets_are_in_sync(row: str) -> None:
    given, isr, expected, epochs = ([*cells.split()] for cells in row.split("|"))
    leader, replicas, adding, removing = given
    isr_before = isr[0] if epochs == ["-"] else leader + "".join(sorted(set("01") & set(replicas) - {leader}))
    before = partition(leader, replicas, isr_before, adding, removing)
    after = change_partition(before, lambda _: True, isr=ids(isr[0]))
    shown = [str(after.leader), *map(digits, (after.replicas, after.isr, after.adding, after.removing))]
    assert shown == expected
    rises = (after.leader_epoch - EPOCHS[0], after.partition_epoch - EPOCHS[1])
    assert rises == ("l" in epochs[0], "p" in epochs[0])


def test_the_chosen_leader_is_the_one_of_the_definition_in_every_small_case() -> None:
    """SEMANTICS 1.4 "leader choice", read as a naive program, over every partition of three replicas."""
    for replicas in permutations((0, 1, 2)):
        for leader, mask, alive_mask, election in product(range(-1, 3), range(8), range(8), Election):
            isr = [b for b in range(3) if mask >> b & 1]
            alive = [b for b in range(3) if alive_mask >> b & 1]
            valid = [b for b in replicas if b in isr and b in alive]
            expected: tuple[int, bool]
            if election is Election.PREFERRED and replicas[0] in valid:
                expected = replicas[0], False
            elif leader in valid:
                expected = leader, False
            elif valid:
                expected = valid[0], False
            elif election is Election.UNCLEAN and alive:
                expected = next(b for b in replicas if b in alive), True
            else:
                expected = NO_LEADER, False
            assert choose_leader(leader, replicas, isr, alive.__contains__, election) == expected


def test_reordering_replicas_is_a_change_without_a_new_leader() -> None:
    before = partition("0", "012", "012")
    after = change_partition(before, lambda _: True, replicas=(2, 1, 0))
    assert (after.leader, after.replicas, after.leader_epoch) == (0, (2, 1, 0), EPOCHS[0])
    check_epochs(before, after)


def test_a_decision_about_many_partitions_is_cut_into_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_changes, "CHANGES_PER_RECORD_MAX", 2)
    image = cluster(*[partition("0", "01", "01")] * 5)
    topic, changes = image.topic("t"), ChangedPartitions()
    changes.add(topic, 0, topic.partitions[0])
    assert changes.records() == []
    for number, before in enumerate(topic.partitions):
        changes.add(topic, number, change_partition(before, lambda b: b != 0, isr=(1,)))
    sizes = [len(record.changes) for record in changes.records() if isinstance(record, PartitionsChanged)]
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(("value", "allowed"), [(None, False), ("false", False), ("true", True)])
def test_unclean_elections_are_the_topics_choice(value: str | None, allowed: bool) -> None:
    config = {} if value is None else {"unclean.leader.election.enable": value}
    assert by_override(TopicImage("t", "id", config, ())) is allowed
