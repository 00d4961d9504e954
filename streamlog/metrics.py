"""Counters that cost nothing to write, and Kafka's MBean names to read them by.

    hot code          registry: full MBean name -> metric                        reader
    meter.count += n  "kafka.server:type=...,name=...,topic=orders" -> meter     snapshot() -> Metrics

1. Writing is one integer addition or one list store: no lock, no clock, no string. The writer is the owner
   of the counter (a broker inside its turn), so an addition is never lost.
2. Everything derived (rates, percentiles) is computed when somebody reads.
3. A metric's full name is its MBean name, then the tags in the order given; reading ignores the order.
4. Nothing grows: a histogram keeps its last 1024 values; `remove(topic=...)` forgets a deleted topic.
5. What there may be very much of (partitions, clients) is not registered: collectors tell of it when asked.

A rate is an exponentially weighted average, as in Kafka's Yammer meters. They tick every 5 s; here each read
(or `tick()`) is a tick of whatever length passed, which is the same for a steady rate. A histogram's Count is
of its whole life; the rest is of its last 1024 values.

Sources: SEMANTICS 2.2; Yammer Metrics 2.2 (EWMA, percentiles); JMX ObjectName.quote; Prometheus text format.
Not implemented: JMX itself, Prometheus histograms (percentiles are gauges, as the JMX exporter gives them).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from streamlog.clock import Clock
from streamlog.errors import ResourceNotFoundError

RESERVOIR_VALUES_MAX = 1_024
RATE_WINDOW_MS = 30_000
RATE_STEP_MS = 1_000

_RATES = {"OneMinuteRate": 60_000, "FiveMinuteRate": 300_000, "FifteenMinuteRate": 900_000}
_PERCENTILES = {
    "50thPercentile": 0.5,
    "75thPercentile": 0.75,
    "95thPercentile": 0.95,
    "98thPercentile": 0.98,
    "99thPercentile": 0.99,
    "999thPercentile": 0.999,
}
_DEFAULT_ATTRIBUTES = ("Value", "Count")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-%. /@")


class Counter:
    """A number that only its owner raises: `counter.count += n`."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def read(self, now_ms: int) -> dict[str, float]:
        """The attributes at this moment (monotonic)."""
        return {"Count": self.count}


class Meter(Counter):
    """A counter with rates per second, computed when read."""

    __slots__ = ("_last_count", "_last_ms", "_rates", "_start_ms")

    def __init__(self, now_ms: int) -> None:
        super().__init__()
        self._start_ms = now_ms
        self._last_ms = now_ms
        self._last_count = 0
        self._rates: dict[str, float] | None = None

    def read(self, now_ms: int) -> dict[str, float]:
        count = self.count
        elapsed_ms = now_ms - self._last_ms
        if elapsed_ms > 0:
            recent = (count - self._last_count) * 1_000 / elapsed_ms
            before = self._rates
            self._rates = {
                name: recent
                if before is None
                else before[name] + (recent - before[name]) * -math.expm1(-elapsed_ms / window_ms)
                for name, window_ms in _RATES.items()
            }
            self._last_ms, self._last_count = now_ms, count
        life_ms = now_ms - self._start_ms
        rates = self._rates or dict.fromkeys(_RATES, 0.0)
        return {"Count": count, "MeanRate": count * 1_000 / life_ms if life_ms > 0 else 0.0, **rates}


class Histogram:
    """The distribution of the last 1024 values. Several threads may update it."""

    __slots__ = ("_ring", "count")

    def __init__(self) -> None:
        self.count = 0
        self._ring: deque[float] = deque(maxlen=RESERVOIR_VALUES_MAX)

    def update(self, value: float) -> None:
        """Add one value; the oldest of 1024 gives way."""
        self._ring.append(value)
        self.count += 1

    def read(self, now_ms: int) -> dict[str, float]:
        """The attributes at this moment; all 0 while there is no value, as in Kafka."""
        values = sorted(self._ring)
        if not values:
            return dict.fromkeys(("Count", "Min", "Max", "Mean", "StdDev", *_PERCENTILES), 0.0)
        mean = math.fsum(values) / len(values)
        spread = math.fsum((value - mean) ** 2 for value in values)
        return {
            "Count": self.count,
            "Min": values[0],
            "Max": values[-1],
            "Mean": mean,
            "StdDev": math.sqrt(spread / (len(values) - 1)) if len(values) > 1 else 0.0,
            **{name: _percentile(values, share) for name, share in _PERCENTILES.items()},
        }


class Timer(Meter):
    """How often something happened, and how long it took: `update(ms)`."""

    __slots__ = ("_times",)

    def __init__(self, now_ms: int) -> None:
        super().__init__(now_ms)
        self._times = Histogram()

    def update(self, ms: float) -> None:
        self.count += 1
        self._times.update(ms)

    def read(self, now_ms: int) -> dict[str, float]:
        return {**self._times.read(now_ms), **super().read(now_ms)}


class WindowedRate:
    """Events per second as Kafka's clients count them: over the last one to two windows of 30 s.

    Looked at less often, the window is as long as the pause between two looks.
    """

    __slots__ = ("_history",)

    def __init__(self, now_ms: int) -> None:
        self._history: deque[tuple[int, float]] = deque([(now_ms, 0)])

    def read(self, total: float, now_ms: int) -> float:
        """The rate at this moment, of a total that only rises."""
        history = self._history
        while len(history) > 1 and history[1][0] <= now_ms - RATE_WINDOW_MS:
            history.popleft()
        begun_ms, before = history[0]
        if now_ms - history[-1][0] >= RATE_STEP_MS:
            history.append((now_ms, total))
        elapsed_ms = now_ms - begun_ms
        if elapsed_ms < RATE_WINDOW_MS:
            elapsed_ms += RATE_WINDOW_MS  # Kafka counts the window before the first one as empty
        return (total - before) * 1_000 / elapsed_ms


class Gauge:
    """A number somebody else keeps: `read` calls the function. It must not block or take a turn."""

    __slots__ = ("_attribute", "_function")

    def __init__(self, function: Callable[[], float], attribute: str = "Value") -> None:
        self._function = function
        self._attribute = attribute

    def read(self, now_ms: int) -> dict[str, float]:
        """The attribute at this moment."""
        return {self._attribute: self._function()}


Reading = tuple[str, "dict[str, float]"]
"""A full MBean name and its attributes."""

Collector = Callable[[int], Iterable[Reading]]
"""Asked at each snapshot, with the monotonic time in ms, for what nobody wants to register one by one."""

_Metric = TypeVar("_Metric", Counter, Meter, Timer, Histogram)


class MetricsRegistry:
    """All metrics of one owner. Asking again for a metric returns the same one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # (full MBean name, gauge attribute or "") -> (tags, metric)
        self._metrics: dict[tuple[str, str], tuple[dict[str, str], Counter | Histogram | Gauge]] = {}
        self._collectors: dict[Collector, None] = {}
        self._numbers: dict[str, int] = {}

    def counter(self, mbean: str, /, **tags: object) -> Counter:
        """A plain count."""
        return self._add(mbean, tags, Counter())

    def meter(self, mbean: str, /, **tags: object) -> Meter:
        """A count with rates."""
        return self._add(mbean, tags, Meter(self._clock.monotonic_ms()))

    def histogram(self, mbean: str, /, **tags: object) -> Histogram:
        """A distribution."""
        return self._add(mbean, tags, Histogram())

    def gauge(
        self, mbean: str, function: Callable[[], float], /, *, attribute: str = "Value", **tags: object
    ) -> Gauge:
        """A number read when asked; a later gauge of the same name and attribute replaces the earlier one."""
        texts = {name: str(value) for name, value in tags.items()}
        gauge = Gauge(function, attribute)
        self._metrics[(full_name(mbean, texts), attribute)] = (texts, gauge)
        return gauge

    def timer(self, mbean: str, /, **tags: object) -> Timer:
        """A count with rates, and a distribution of times."""
        return self._add(mbean, tags, Timer(self._clock.monotonic_ms()))

    def collect(self, collector: Collector) -> None:
        """Ask `collector` at each snapshot: what it no longer tells of is gone. It must not take a turn."""
        self._collectors[collector] = None

    def forget(self, collector: Collector) -> None:
        """Ask `collector` no more. Forgetting twice is harmless."""
        self._collectors.pop(collector, None)

    def next_number(self, kind: str) -> int:
        """1, 2, 3, ...: what clients of one kind are called by."""
        number = self._numbers[kind] = self._numbers.get(kind, 0) + 1
        return number

    def remove(self, **tags: object) -> int:
        """Forget every metric that has all these tags; returns how many."""
        if not tags:
            raise ValueError("remove() needs at least one tag, for instance remove(topic='orders')")
        wanted = {name: str(value) for name, value in tags.items()}.items()
        doomed = [key for key, (have, _) in list(self._metrics.items()) if wanted <= have.items()]
        for key in doomed:
            self._metrics.pop(key, None)
        return len(doomed)

    def tick(self) -> None:
        """Bring the meters' rates up to date, so that they follow changes between two snapshots."""
        now_ms = self._clock.monotonic_ms()
        for _, metric in list(self._metrics.values()):
            if isinstance(metric, Meter):
                metric.read(now_ms)

    def snapshot(self) -> Metrics:
        """Everything at this moment."""
        now_ms = self._clock.monotonic_ms()
        values: dict[str, dict[str, float]] = {}
        for (name, _), (_, metric) in list(self._metrics.items()):
            values.setdefault(name, {}).update(metric.read(now_ms))
        for collector in list(self._collectors):
            for name, attributes in collector(now_ms):
                values.setdefault(name, {}).update(attributes)
        return Metrics(values)

    def _add(self, mbean: str, tags: Mapping[str, object], metric: _Metric) -> _Metric:
        texts = {name: str(value) for name, value in tags.items()}
        key = (full_name(mbean, texts), "")
        _, present = self._metrics.setdefault(key, (texts, metric))
        if type(present) is not type(metric):
            raise TypeError(f"{key[0]} is a {type(present).__name__} already, not a {type(metric).__name__}")
        return present


class Metrics(Mapping[str, "dict[str, float]"]):
    """One reading: full MBean name -> attribute -> number."""

    __slots__ = ("_by_properties", "_values")

    def __init__(self, values: Mapping[str, dict[str, float]]) -> None:
        self._values = dict(values)
        self._by_properties: dict[object, str] | None = None

    def __getitem__(self, mbean: str) -> dict[str, float]:
        return self._values[mbean]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<Metrics: {len(self)} MBeans>"

    def __or__(self, other: Metrics) -> Metrics:
        """Both readings in one; the right one wins where they share a name."""
        return Metrics({**self._values, **other._values})

    def value(self, mbean: str, attribute: str | None = None, /, **tags: object) -> float:
        """One number. Without an attribute: Value, else Count. Tags may be part of the name, in any order."""
        wanted = full_name(mbean, {name: str(value) for name, value in tags.items()})
        name = wanted if wanted in self._values else self._found(wanted)
        if name is None:
            near = _closest(wanted, self._values)
            hint = f"; did you mean {near!r}?" if near else ""
            raise ResourceNotFoundError(
                f"no metric {wanted!r} among {len(self)}{hint}", mbean=wanted, suggestion=near
            )
        attributes = self._values[name]
        for candidate in (attribute,) if attribute is not None else _DEFAULT_ATTRIBUTES:
            if candidate in attributes:
                return attributes[candidate]
        raise ResourceNotFoundError(
            f"{name} has no attribute {attribute or 'Value or Count'}; it has {', '.join(attributes)}",
            mbean=name,
        )

    def _found(self, wanted: str) -> str | None:
        """The MBean of this name with its tags in another order."""
        if self._by_properties is None:
            self._by_properties = {parse_name(name): name for name in self._values}
        return self._by_properties.get(parse_name(wanted))

    def prometheus(self) -> str:
        """Prometheus' text format 0.0.4: type and name join the metric's name, other tags are labels."""
        families: dict[str, list[str]] = {}
        counters: set[str] = set()
        # The same few names, and the same tags, come back for every partition: what is made of them is kept.
        names: dict[tuple[str, str, str, str], str] = {}
        heads: dict[str, tuple[str, str, str] | None] = {}
        tails: dict[str, str | None] = {}
        for mbean, attributes in self._values.items():
            cut = mbean.find(",", mbean.find(",") + 1)
            head, tail = (mbean[:cut], mbean[cut + 1 :]) if cut > 0 else (mbean, "")
            if head not in heads:
                heads[head] = _plain_head(head)
            if tail not in tails:
                tails[tail] = _plain_labels(tail)
            known, suffix = heads[head], tails[tail]
            if known is None or suffix is None:
                domain, properties = parse_name(mbean)
                tags = dict(properties)
                known = domain, tags.pop("type", ""), tags.pop("name", "")
                suffix = _labels(tags)
            domain, kind, name = known
            for attribute, number in attributes.items():
                parts = (domain, kind, name, attribute)
                family = names.get(parts)
                if family is None:
                    family = names[parts] = _prometheus_name("_".join(filter(None, parts)))
                    families.setdefault(family, [])
                    if attribute == "Count":
                        counters.add(family)
                text = repr(number) if type(number) is int else _prometheus_number(number)
                families[family].append(f"{family}{suffix}{text}\n")
        lines = []
        for family in sorted(families):
            lines.append(f"# TYPE {family} {'counter' if family in counters else 'gauge'}\n")
            lines.extend(families[family])
        return "".join(lines)


def full_name(mbean: str, tags: Mapping[str, str]) -> str:
    """The MBean's name with tags appended; values that JMX could not read are quoted."""
    if not tags:
        return mbean
    pairs = ",".join(f"{name}={_quote(value)}" for name, value in tags.items())
    return f"{mbean}{',' if ':' in mbean else ':'}{pairs}"


def parse_name(name: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """An MBean name as its domain and its sorted properties: the inverse of `full_name`."""
    domain, _, rest = name.partition(":")
    properties: list[tuple[str, str]] = []
    position = 0
    while position < len(rest):
        equals = rest.find("=", position)
        if equals < 0:
            break
        key, position = rest[position:equals], equals + 1
        if rest[position : position + 1] == '"':
            value, position = _unquote(rest, position + 1)
        else:
            end = rest.find(",", position)
            end = len(rest) if end < 0 else end
            value, position = rest[position:end], end
        properties.append((key, value))
        position += 1  # the comma
    return domain, tuple(sorted(properties))


def _quote(value: str) -> str:
    if value and _PLAIN.issuperset(value):
        return value
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("*", "\\*"), ("?", "\\?"), ("\n", "\\n")):
        value = value.replace(plain, escaped)
    return f'"{value}"'


def _unquote(text: str, position: int) -> tuple[str, int]:
    """The quoted value that begins at `position`, and the position after its closing quote."""
    characters = []
    while position < len(text) and text[position] != '"':
        if text[position] == "\\" and position + 1 < len(text):
            position += 1
            characters.append("\n" if text[position] == "n" else text[position])
        else:
            characters.append(text[position])
        position += 1
    return "".join(characters), position + 1


def _percentile(values: list[float], share: float) -> float:
    """Yammer's Snapshot.getValue: linear between the neighbours of rank share * (n + 1)."""
    rank = share * (len(values) + 1)
    if rank < 1:
        return values[0]
    if rank >= len(values):
        return values[-1]
    lower = values[int(rank) - 1]
    return lower + (rank - int(rank)) * (values[int(rank)] - lower)


def _plain_head(head: str) -> tuple[str, str, str] | None:
    """Domain, type and name of an MBean that begins with these two and nothing else; None if it does not."""
    domain, properties = parse_name(head)
    if '"' in head or [key for key, _ in properties] != ["name", "type"]:
        return None
    return domain, properties[1][1], properties[0][1]


def _plain_labels(tail: str) -> str | None:
    """The labels of the tags behind type and name; None where the name must be looked at as a whole."""
    properties = dict(parse_name(f":{tail}")[1])
    return None if "type" in properties or "name" in properties else _labels(properties)


def _labels(tags: Mapping[str, str]) -> str:
    labels = ",".join(f'{_prometheus_name(key)}="{_escape(value)}"' for key, value in tags.items())
    return f"{{{labels}}} " if labels else " "


def _prometheus_name(name: str) -> str:
    clean = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
    return f"_{clean}" if clean[:1].isdigit() else clean


def _prometheus_number(number: float) -> str:
    if isinstance(number, float):
        if math.isnan(number):
            return "NaN"
        if math.isinf(number):
            return "+Inf" if number > 0 else "-Inf"
    return repr(int(number)) if isinstance(number, int) else repr(number)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _closest(name: str, names: Mapping[str, object]) -> str | None:
    import difflib

    near = difflib.get_close_matches(name, list(names), n=1)
    return near[0] if near else None
