"""Apache Kafka itself: three brokers on this machine, each a process that is broker and controller (KRaft).

The jars come from Maven Central by `mvn`, once, into a directory of the user's cache; STREAMLOG_KAFKA_LIBS names another.
Where Java, Maven or the network is missing the contestant is skipped, with the reason.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import UnavailableError

KAFKA_VERSION = "3.9.1"
CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qg"
BROKERS = 3
START_SECONDS = 90
FETCH_SECONDS = 600

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion><groupId>streamlog</groupId><artifactId>kafka-brokers</artifactId><version>1</version>
<dependencies><dependency>
<groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
</dependency></dependencies></project>
"""


def kafka_libraries() -> Path:
    """The directory with Kafka's jars; fetched at the first use."""
    if importlib.util.find_spec("confluent_kafka") is None:  # before anything is fetched or started
        raise UnavailableError("confluent_kafka is missing: pip install confluent-kafka")
    if shutil.which("java") is None:
        raise UnavailableError("java is missing (Kafka needs 17): apt-get install openjdk-17-jre-headless")
    named = os.environ.get("STREAMLOG_KAFKA_LIBS")
    if named:
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "streamlog-benchmarks" / f"kafka-{KAFKA_VERSION}"
    done = path / "FETCHED"
    if not done.exists():
        if shutil.which("mvn") is None:
            raise UnavailableError(
                "mvn is missing: apt-get install maven, or name jars by STREAMLOG_KAFKA_LIBS"
            )
        path.mkdir(parents=True, exist_ok=True)
        (path / "pom.xml").write_text(_POM)
        fetched = subprocess.run(
            ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={path / 'libs'}"],
            cwd=path,
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
            check=False,
        )
        if fetched.returncode:
            raise UnavailableError(f"mvn cannot fetch Kafka: {fetched.stdout.strip()[-200:]}")
        done.touch()
    return path / "libs"


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@contextmanager
def kafka_brokers(directory: Path) -> Iterator[str]:
    """Three brokers with Kafka's defaults, and 512 MB each; yields their `bootstrap.servers`."""
    libraries = kafka_libraries()
    free = _free_ports(2 * BROKERS)
    ports, controllers = free[:BROKERS], free[BROKERS:]
    voters = ",".join(f"{number}@127.0.0.1:{port}" for number, port in enumerate(controllers, 1))
    java = ["java", "-Xmx512m", "-XX:+UseG1GC", "-cp", f"{libraries}/*"]
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for number, (port, controller) in enumerate(zip(ports, controllers, strict=True), 1):
            options = directory / f"kafka-{number}.properties"
            options.write_text(
                f"process.roles=broker,controller\nnode.id={number}\n"
                f"listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n"
                f"advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n"
                "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n"
                f"controller.quorum.voters={voters}\nlog.dirs={directory / f'kafka-{number}'}\n"
            )
            subprocess.run(
                [*java, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(options)],
                check=True,
                capture_output=True,
                timeout=START_SECONDS,
            )
            servers.append(
                subprocess.Popen(
                    [*java, "kafka.Kafka", str(options)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
        bootstrap = ",".join(f"127.0.0.1:{port}" for port in ports)
        _wait_for_brokers(bootstrap, servers)
        yield bootstrap
    finally:
        for server in servers:
            server.kill()
        for server in servers:
            server.wait()


def _wait_for_brokers(bootstrap: str, servers: list[subprocess.Popen[bytes]]) -> None:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if len(admin.list_topics(timeout=2).brokers) == BROKERS:
                return
        except KafkaException:
            pass  # not up yet
        if time.monotonic() > deadline or any(server.poll() is not None for server in servers):
            raise RuntimeError(f"Kafka did not start within {START_SECONDS} s")
        time.sleep(0.2)


def create_kafka_topic(bootstrap: str, name: str, partitions: int = 1, factor: int = BROKERS) -> None:
    from confluent_kafka import admin as administration

    admin = administration.AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    new_topic: Any = vars(administration)["NewTopic"]  # it is there, only its stubs do not say so
    created = admin.create_topics([new_topic(name, partitions, factor, config={"min.insync.replicas": "2"})])
    created[name].result(30)
