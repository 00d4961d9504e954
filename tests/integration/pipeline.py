"""A read-process-write pipeline in a process of its own, to be killed: `python pipeline.py DIRECTORY [to-end]`.

Says `ready MS` (from its start to the first record it was given) once it works.
"""

from __future__ import annotations

import sys
import time

import streamlog


def main(path: str, to_end: bool) -> None:
    begun = time.perf_counter()
    is_told = False
    with streamlog.open(path, sync="off") as cluster:
        group = cluster.consumer_group("g", ["in"], enable_auto_commit=False)
        with group.consumer() as consumer, cluster.producer(transactional_id="pipeline") as producer:
            while not (to_end and group.offsets() and sum(group.lag().values()) == 0):
                with producer.transaction(consumer):
                    for record in consumer.poll(0.2, max_records=7):
                        producer.send("out", record.value, key=record.key)
                        if not is_told:
                            is_told = True
                            print(f"ready {(time.perf_counter() - begun) * 1e3:.0f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], "to-end" in sys.argv[2:])
