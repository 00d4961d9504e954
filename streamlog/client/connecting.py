"""One URL for a directory, a cluster in memory, or (with the extra `kafka`) an Apache Kafka cluster."""

from __future__ import annotations

from typing import Any

from streamlog.client.cluster import Cluster
from streamlog.client.opening import open_cluster
from streamlog.errors import ConfigError, UnsupportedOperationError

KAFKA = "kafka://"
DIRECTORY = "streamlog://"


def connect(url: str, **options: Any) -> Cluster:
    """Open what a URL names: a path or `streamlog:///path`, `":memory:"`, or `kafka://host:port`.

    options: those of `streamlog.open`.
    Raises   UnsupportedOperationError for `kafka://`, which this version does not have yet; ConfigError for
             another scheme.
    """
    if not isinstance(url, str):
        raise ConfigError(f"connect({url!r}): allowed: a str", option="url", value=url, allowed="a str")
    if url.startswith(KAFKA):
        raise UnsupportedOperationError(
            f"connect({url!r}): the adapter to Apache Kafka is not part of this version yet"
        )
    host, _, port = url.rpartition(":")
    if port.isdecimal() and host and not host.startswith(":") and "/" not in host:
        raise ConfigError(
            f"connect({url!r}) looks like a host and a port; did you mean {KAFKA + url!r}? "
            f"A directory of that name is {'./' + url!r}",
            option="url",
            value=url,
            allowed="a path, streamlog:///path, ':memory:', kafka://host:port",
            suggestion=KAFKA + url,
        )
    if url.startswith(DIRECTORY):
        url = url[len(DIRECTORY) :]
    elif "://" in url:
        raise ConfigError(
            f"connect({url!r}): allowed: a path, streamlog:///path, ':memory:' or kafka://host:port",
            option="url",
            value=url,
            allowed="a path, streamlog:///path, ':memory:', kafka://host:port",
        )
    return open_cluster(url, **options)
