"""A foreign configuration while it is read: what it says, what that means here, and what cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["field", "default", "no effect", "note", "unset"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the caller knows and a configuration may leave open."""

    samples: int | None = None  # of the training set: what an epoch is
    devices: int | None = None  # that the run had: what is left for data parallelism
    vocab_size: int | None = None  # of the tokenizer


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one key."""

    kind: Kind
    key: str
    value: Any
    text: str


@dataclass
class Reading:
    """The keys of a configuration and what they decide.

    `given` has every key with a value, `defaults` what the system takes for those that are absent.
    """

    given: Mapping[str, Any]
    defaults: Mapping[str, Any]
    facts: Facts
    also: tuple[str, str] = ("", "")  # a section, and another that may hold its keys
    answered: frozenset[str] = frozenset()  # fields that the caller sets, whatever the configuration says
    fields: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)  # of a field: the key that decided it
    lines: list[Line] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)  # of gptbridge train, for what is no field
    preset: str | None = None  # of a model, below the fields
    launched: int | None = None  # devices that the launcher's own arguments ask for
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of a key: fields it decides with others

    def set(self, name: str, value: Any, key: str = "") -> None:
        """Decide a field; two keys of the file that decide it differently are refused."""
        before = self.origins.get(name)
        if before in self.given and key and key not in self.given:
            return  # what is left out takes its default, and this is decided
        if before and key and key != before and self.fields[name] != value:
            self.refuse(key, f"{before} says {name}={self.fields[name]}")
        self.fields[name] = value
        self.origins[name] = key or before or ""

    def refuse(self, key: str, why: str) -> None:
        """Note what cannot be; the import goes on, to find all of it."""
        self.problems.append(f"{key}{self._shown(key)}: {why}")

    def note(self, text: str, key: str = "") -> None:
        """Say what a reader must know and no field holds."""
        self.lines.append(Line("note", key, self.given.get(key), text))

    def ask(self, name: Literal["samples", "devices", "vocab_size"], key: str, why: str) -> int | None:
        """Return a fact of the caller's, or note that it is needed."""
        value: int | None = getattr(self.facts, name)
        if value is None:
            self.refuse(key, f"{why}: give --{name.replace('_', '-')} N")
        return value

    def key(self, *keys: str) -> str:
        """Return the first of several names of one thing that is given, else the first."""
        own, other = self.also
        names = [*keys, *(other + key.removeprefix(own) for key in keys if own and key.startswith(own))]
        return next((key for key in names if key in self.given), keys[0])

    def value(self, *keys: str) -> Any:
        """Return what the first of the keys says that is given, else the system's default, else None."""
        key = self.key(*keys)
        return self.given.get(key, self.defaults.get(keys[0]))

    def whole(self, *keys: str) -> int | None:
        """Return a whole number, or None where no key says it or it is no such number."""
        value = self.number(*keys)
        if value is not None and value != int(value):
            self.refuse(self.key(*keys), "is not a whole number")
            return None
        return None if value is None else int(value)

    def number(self, *keys: str) -> float | None:
        """Return a number, written as text too, or None where no key says it or it is none."""
        value = self.value(*keys)
        if value is None:
            return None
        try:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
            if not abs(number) < 1e18:
                raise ValueError
        except (TypeError, ValueError):
            self.refuse(self.key(*keys), "is not a number")
            return None
        return number

    def flag(self, *keys: str) -> bool:
        """Return a switch; what is absent is off."""
        value = self.value(*keys)
        word = str(value).strip().lower()
        if word not in _SWITCH:
            self.refuse(self.key(*keys), "is neither true nor false")
        return _SWITCH.get(word, False)

    def degree(self, *keys: str) -> int:
        """Return a number of devices or of parts, 1 where no key says it."""
        value = self.whole(*keys)
        if value is not None and value < 1:
            self.refuse(self.key(*keys), "is not at least 1")
        return max(value or 1, 1)

    def _shown(self, key: str) -> str:
        if key not in self.given:
            return ""
        text = str(self.given[key])
        return f" = {text if len(text) <= 60 else text[:57] + '...'}"


_ON, _OFF = ("true", "yes", "on", "y", "t", "1"), ("none", "", "false", "no", "off", "n", "f", "0")
_SWITCH = {**dict.fromkeys(_ON, True), **dict.fromkeys(_OFF, False)}
