"""The machinery under config.py: rules that parse one value, and the class that turns a table into a config.

A role is a frozen struct whose fields are written once each: `name: Annotated[type, rule, "doc"] = default`.
From that one line come the typed attribute, the parser, the error message and the documentation.

1. Input is read as Kafka reads it: text is parsed ("5000", "true", "-1"); a bool is not a number; a float
   is not a whole number; None is taken only where the rule says so.
2. Keywords are snake_case; `config` mappings may be dotted or snake_case; a keyword wins over the mapping.
3. Nothing is ever ignored silently: an option is known, or known to mean nothing here (one debug log line),
   or ConfigError.
4. ConfigError always carries option, value, allowed, suggestion, as fields and in the message.

Source: Kafka's ConfigDef; SEMANTICS 1.1 to 1.4.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, get_args

import msgspec
from typing_extensions import Self

from streamlog.errors import ConfigError
from streamlog.option_rules import Refused, Rule, closest

_SHORT_MAX = 80  # characters of a refused value worth showing


class Option(msgspec.Struct, frozen=True):
    """One row of a role's table."""

    name: str
    dotted: str
    type: str
    default: object
    allowed: str
    doc: str
    rule: Rule


class Role(msgspec.Struct, frozen=True):
    """What the config structs share. Build them with `from_options`; plain construction checks nothing."""

    ROLE: ClassVar[str] = ""
    DOTTED: ClassVar[Mapping[str, str]] = {}  # name -> dotted, where dots for underscores is not enough
    ALIASES: ClassVar[
        Mapping[str, tuple[str, int]]
    ] = {}  # dotted -> (name, factor): the same thing, other spelling
    HABITS: ClassVar[Mapping[str, str]] = {}  # name -> remark: what people bring from elsewhere
    ARGUMENTS: ClassVar[
        tuple[str, ...]
    ] = ()  # beside the options, where those are given: they are misspelt as well
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ()  # dotted names, or prefixes ending in "."

    @classmethod
    def from_options(cls, options: Mapping[str, object], config: Mapping[str, object] | None = None) -> Self:
        """Parse keywords and a dotted mapping into a config. A keyword wins over the mapping."""
        return cls._build(cls._parse(options, config))

    @classmethod
    def options(cls) -> list[Option]:
        """The table, in the order it is written."""
        return list(_table(cls).values())

    def dotted(self) -> dict[str, str]:
        """Every option under Kafka's name, as Kafka's text; None and callables are left out."""
        texts = {}
        for option in self.options():
            value = getattr(self, option.name)
            if value is not None and not callable(value):
                texts[option.dotted] = _kafka_text(value)
        return texts

    def replaced(self, options: Mapping[str, object], config: Mapping[str, object] | None = None) -> Self:
        """A copy with these options set, checked as in `from_options`."""
        return self._build(self._parse(options, config), self)

    @classmethod
    def overrides(cls, config: Mapping[str, object]) -> dict[str, str]:
        """Checked options as text under Kafka's names, and only those given: what is worth storing."""
        table = _table(cls)
        return {table[name].dotted: _kafka_text(value) for name, value in cls._parse({}, config).items()}

    @classmethod
    def dotted_names(cls, names: Iterable[str]) -> list[str]:
        """Kafka's names of options given in either spelling. Raises ConfigError for an unknown one."""
        table = _table(cls)
        found = (cls._find(name, None, table, [])[0] for name in names)
        return [option.dotted for option in found if option is not None]

    @classmethod
    def _parse(cls, options: Mapping[str, object], config: Mapping[str, object] | None) -> dict[str, object]:
        values: dict[str, object] = {}
        if config is not None and not isinstance(config, Mapping):
            raise cls.no_mapping(config)
        if not options and not config:
            return values
        table = _table(cls)
        idle: list[str] = []
        for given in (config or {}, options):
            spelled: dict[str, str] = {}
            for key, value in given.items():
                option, factor = cls._find(key, value, table, idle)
                if option is None:
                    continue
                if option.name in spelled:
                    raise ConfigError(
                        f"{cls.ROLE} option {option.name} is given twice,"
                        f" as {spelled[option.name]!r} and {key!r}; keep one of them",
                        option=option.name,
                        value=value,
                        allowed="each option once",
                    )
                spelled[option.name] = key
                parsed = cls._parse_one(option, key, value)
                if factor != 1 and isinstance(parsed, int) and parsed > 0:  # -1 means "never" in every unit
                    parsed *= factor
                values[option.name] = parsed
        if idle:
            import logging

            logging.getLogger("streamlog").debug(
                "%s options accepted without effect: %s", cls.ROLE, ", ".join(sorted(idle))
            )
        return values

    @classmethod
    def no_mapping(cls, given: object) -> ConfigError:
        """The error for options that are no mapping."""
        remark = (
            f"; {cls.HABITS['topics']}"
            if isinstance(given, (str, list, tuple)) and "topics" in cls.HABITS
            else ""
        )
        return ConfigError(
            f"{cls.ROLE} options {_brief(given)} ({type(given).__name__}): allowed are keywords,"
            f" or a mapping of option names to values{remark}",
            option="config",
            value=given,
            allowed="a mapping of option names to values",
        )

    @classmethod
    def _find(
        cls, key: object, value: object, table: OptionTable, idle: list[str]
    ) -> tuple[Option | None, int]:
        if not isinstance(key, str):
            raise ConfigError(
                f"{cls.ROLE} option names are text, not {key!r}", option=str(key), value=value, allowed="text"
            )
        dotted = key.replace("_", ".")
        name = dotted.replace(".", "_")
        if name in table:
            return table[name], 1
        if dotted in table.names_by_dotted:
            return table[table.names_by_dotted[dotted]], 1
        if dotted in cls.ALIASES:
            name, factor = cls.ALIASES[dotted]
            return table[name], factor
        if name in cls.HABITS:
            raise ConfigError(
                f"unknown {cls.ROLE} option {key!r} (given {_brief(value)}): {cls.HABITS[name]}",
                option=key,
                value=value,
                allowed=f"the options of streamlog.config.describe({cls.ROLE!r})",
                suggestion=cls.HABITS[name],
            )
        if any(
            dotted.startswith(idler) if idler.endswith(".") else dotted == idler
            for idler in cls.WITHOUT_EFFECT
        ):
            idle.append(dotted)
            return None, 1
        raise cls._unknown(key, value, table)

    @classmethod
    def _unknown(cls, key: str, value: object, table: Mapping[str, Option]) -> ConfigError:
        wanted_dotted = "." in key
        spellings = {
            option.name: option.dotted if wanted_dotted else option.name for option in table.values()
        }
        spellings.update(
            {option.dotted.replace(".", "_"): spellings[option.name] for option in table.values()}
        )
        spellings.update({argument: argument for argument in cls.ARGUMENTS})
        near = closest(key.replace(".", "_").lower(), spellings)
        suggestion = spellings[near] if near else None
        hint = (
            f"did you mean {suggestion!r}?"
            if suggestion
            else f"streamlog.config.describe({cls.ROLE!r}) lists what there is"
        )
        return ConfigError(
            f"unknown {cls.ROLE} option {key!r} (given {_brief(value)}); {hint}",
            option=key,
            value=value,
            allowed=f"the options of streamlog.config.describe({cls.ROLE!r})",
            suggestion=suggestion,
        )

    @classmethod
    def _parse_one(cls, option: Option, key: str, value: object) -> object:
        try:
            return option.rule.parse(value)
        except Refused as refused:
            given = f"{_brief(value)} ({type(value).__name__})"
            message = f"{cls.ROLE} option {key!r} is {given}; allowed is {option.allowed}"
            if refused.remark:
                message += f"; {refused.remark}"
            if refused.suggestion:
                message += f"; did you mean {refused.suggestion!r}?"
            raise ConfigError(
                message,
                option=option.name,
                value=value,
                allowed=option.allowed,
                suggestion=refused.suggestion,
            ) from None

    @classmethod
    def _build(cls, values: Mapping[str, Any], defaults: Self | None = None) -> Self:
        made = msgspec.structs.replace(defaults, **values) if defaults is not None else cls(**values)
        return made._checked(frozenset(values))

    def _checked(self, given: frozenset[str]) -> Self:
        """Rules between options. `given` are what the user set; the rest are defaults that may give way."""
        return self

    def _conflict(self, option: str, allowed: str, remedy: str) -> ConfigError:
        value = getattr(self, option)
        return ConfigError(
            f"{self.ROLE} option {option!r} is {_brief(value)}; allowed here is {allowed}; {remedy}",
            option=option,
            value=value,
            allowed=allowed,
        )


class OptionTable(Mapping[str, Option]):
    """A role's options by name. Each is read from its annotation at its first use: opening needs a few, not all."""

    def __init__(self, role: type[Role]) -> None:
        self._role = role
        self._defaults = dict(zip(role.__struct_fields__, _defaults_of(role), strict=True))
        self._read: dict[str, Option] = {}
        self.names_by_dotted = {self.dotted(name): name for name in self._defaults}

    def dotted(self, name: str) -> str:
        return self._role.DOTTED.get(name, name.replace("_", "."))

    def __contains__(self, name: object) -> bool:
        return name in self._defaults

    def __iter__(self) -> Iterator[str]:
        return iter(self._defaults)

    def __len__(self) -> int:
        return len(self._defaults)

    def __getitem__(self, name: str) -> Option:
        option = self._read.get(name)
        if option is None:
            # The annotations are text (PEP 563) and stand in the module of the role.
            annotation = eval(self._role.__annotations__[name], vars(sys.modules[self._role.__module__]))
            kind, rule, doc = get_args(annotation)
            option = self._read[name] = Option(
                name=name,
                dotted=self.dotted(name),
                type=_type_name(kind),
                default=self._defaults[name],
                allowed=rule.allowed,
                doc=" ".join(doc.split()),
                rule=rule,
            )
        return option


def _defaults_of(role: type[Role]) -> list[object]:
    plain = role()
    return [getattr(plain, name) for name in role.__struct_fields__]


_tables: dict[type[Role], OptionTable] = {}


def _table(role: type[Role]) -> OptionTable:
    table = _tables.get(role)
    if table is None:
        table = _tables[role] = OptionTable(role)
    return table


def _type_name(kind: object) -> str:
    return (
        kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
    )


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHORT_MAX else text[: _SHORT_MAX - 3] + "..."


def _kafka_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
