"""What one option takes: rules that parse a value as Kafka would, and say what is allowed.

Text is parsed ("5000", "true", "-1"); a bool is not a number; a float is not a whole number; None is taken only where the
rule says so. A rule raises `Refused`; `options.Role` makes a ConfigError of it that names the option.

Source: Kafka's ConfigDef.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1


class Refused(Exception):
    """A rule does not take the value; raised by rules, turned into ConfigError by the role."""

    def __init__(self, suggestion: str | None = None, remark: str = "") -> None:
        super().__init__(remark)
        self.suggestion = suggestion
        self.remark = remark


class Rule(msgspec.Struct, frozen=True):
    """What one option takes."""

    @property
    def allowed(self) -> str:
        raise NotImplementedError

    def parse(self, value: object) -> object:
        raise NotImplementedError


class Whole(Rule, frozen=True):
    """A whole number in [minimum, maximum]."""

    minimum: int = 0
    maximum: int = INT64_MAX

    @property
    def allowed(self) -> str:
        if self.maximum >= INT64_MAX:
            return f"a whole number >= {self.minimum}"
        return f"a whole number from {self.minimum} to {self.maximum}"

    def parse(self, value: object) -> int:
        if isinstance(value, str):
            try:
                value = int(value)
            except ValueError:
                raise Refused from None
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused
        if not self.minimum <= value <= self.maximum:
            raise Refused
        return value


class Real(Rule, frozen=True):
    """A number in [minimum, maximum]."""

    minimum: float
    maximum: float

    @property
    def allowed(self) -> str:
        return f"a number from {self.minimum:g} to {self.maximum:g}"

    def parse(self, value: object) -> float:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise Refused from None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Refused
        if not self.minimum <= value <= self.maximum:  # NaN ends here too
            raise Refused
        return float(value)


class Flag(Rule, frozen=True):
    """True or False."""

    @property
    def allowed(self) -> str:
        return 'True or False (or the text "true", "false")'

    def parse(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
        raise Refused


class Text(Rule, frozen=True):
    """Text that is not empty."""

    @property
    def allowed(self) -> str:
        return "text that is not empty"

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise Refused
        return value


class Choice(Rule, frozen=True):
    """One of a few words. `habits` maps words people try to the right word or to a remark about it."""

    words: tuple[str, ...]
    habits: Mapping[str, str] = {}
    needs: Mapping[str, str] = {}  # word -> the package it needs, which the extra `kafka` brings
    pattern: str = ""  # an additional form, e.g. "by_duration:PT1H"
    pattern_shown: str = ""
    or_callable: bool = False

    @property
    def allowed(self) -> str:
        forms = [f'"{word}"' for word in self.words]
        if self.pattern_shown:
            forms.append(self.pattern_shown)
        if self.or_callable:
            forms.append("a callable")
        return "one of " + ", ".join(forms)

    def parse(self, value: object) -> object:
        if self.or_callable and callable(value):
            return value
        if not isinstance(value, str):
            raise Refused
        word = value.strip()
        if word in self.words:
            self._check_needs(word)
            return word
        if self.pattern:
            import re

            if re.fullmatch(self.pattern, word):
                return word
        folded = word.lower()
        raise Refused(self.habits.get(folded) or closest(folded, self.words))

    def _check_needs(self, word: str) -> None:
        if word in self.needs:
            import importlib.util

            if importlib.util.find_spec(self.needs[word]) is None:
                raise Refused(
                    remark=f"{word} needs {self.needs[word]}: pip install 'streamlog-embedded[kafka]'"
                )


class Words(Rule, frozen=True):
    """A list of words: a list, a tuple, or text with commas. `long_names` are other spellings."""

    choice: Choice
    long_names: Mapping[str, str] = {}
    or_empty: bool = False

    @property
    def allowed(self) -> str:
        least = "a list (it may be empty)" if self.or_empty else "a list of at least one"
        return f"{least} out of " + ", ".join(f'"{word}"' for word in self.choice.words)

    def parse(self, value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, (list, tuple, set, frozenset)):
            raise Refused
        given = [self.long_names.get(part, part) if isinstance(part, str) else part for part in value]
        if isinstance(value, (set, frozenset)):
            given.sort(key=str)
        words = tuple(str(self.choice.parse(part)) for part in given)
        if not words and not self.or_empty:
            raise Refused
        if len(set(words)) < len(words):
            raise Refused(remark="a word stands there twice")
        return words


class Acks(Rule, frozen=True):
    """Kafka's acks, kept as its number: "all" is -1."""

    @property
    def allowed(self) -> str:
        return '"all" (or -1), 0, 1'

    def parse(self, value: object) -> int:
        if isinstance(value, str):
            number = {"all": -1, "-1": -1, "0": 0, "1": 1}.get(value.strip().lower())
        else:
            number = value if isinstance(value, int) and not isinstance(value, bool) else None
        if number not in (-1, 0, 1):
            raise Refused("all" if isinstance(number, int) and number > 1 else None)
        return number


class SerdeRule(Rule, frozen=True):
    """A serializer or deserializer: a callable, a Serde, or the name of a known one; `serde` looks closer."""

    method: str

    @property
    def allowed(self) -> str:
        return "None, a callable, a serde, or the name of one"

    def parse(self, value: object) -> object:
        known = isinstance(value, str) and bool(value.strip())
        if value is None or known or callable(value) or callable(getattr(value, self.method, None)):
            return value
        raise Refused


class Maybe(Rule, frozen=True):
    """Another rule, or None (which text cannot spell)."""

    rule: Rule

    @property
    def allowed(self) -> str:
        return f"None or {self.rule.allowed}"

    def parse(self, value: object) -> object:
        return None if value is None else self.rule.parse(value)


def closest(word: str, words: Iterable[str]) -> str | None:
    """The most similar of the words, if one is similar at all."""
    import difflib

    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return near[0] if near else None
