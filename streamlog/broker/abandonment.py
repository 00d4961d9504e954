"""A turn lock whose thread died holding it: whoever waits in vain frees it.

Two interrupts in a row, the second on the way out of the first, can keep a thread from letting go. While it lives, its
next call notices (`TurnOwner._is_inside`); when it dies, nobody would ever run a turn again.

    waited in vain --> holder among the living? --no--> end what it left open in the store --> free the lock

The engine lets nobody but a transaction's thread end it, as long as that thread lives: its mutex is the thread's. With
the thread the kernel takes the mutex back, so another one may; and must, since to begin a transaction while the dead
one's is open makes the engine take the whole environment for broken (MDB_PANIC).

Numbers of threads are used again: a new thread may bear the dead one's, and hold the lock unawares. It frees the lock
with its first call; both ways take `_freeing`, so none frees what the other has given away. Until then nobody can tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamlog.broker.turn import TurnOwner


def free_if_abandoned(owner: TurnOwner) -> bool:
    """Free the turn lock if the thread that holds it is no more; whether it was so."""
    runtime, lock = owner.runtime, owner.turn_lock
    if not runtime.is_abandoned(lock):
        return False
    with owner._freeing:
        if not runtime.is_abandoned(lock):
            return False  # somebody else was faster
        left_open = owner.environment.newest_write
        if left_open is not None:
            left_open.abort()  # of one that ended: a no-op
        lock._at_fork_reinit()
    return True
