"""The second half of a turn that is whole before its transaction begins: commit, apply, answer.

`committing` and `lone_transactions` decide such turns, by the laws of `producing.run_alone`, which has its own for speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from streamlog.broker.pending import Turn

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.storage.env import WriteTransaction


def carry_out(broker: Broker, turn: Turn, write: Callable[[WriteTransaction], object]) -> None:
    """Write what a turn has decided, and finish it. Cut short anywhere it is finished by the general turn."""
    broker._unfinished = turn
    try:
        transaction = turn.transaction = broker.environment.write()
        turn.transaction_id = transaction.id
        write(transaction)
        broker._commit(transaction)
        turn.committed = True
    except Exception as error:
        broker._abandon(turn, error)
    broker._finish(turn)
