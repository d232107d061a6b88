"""The rows of a system's table: which keys it has, and what becomes of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from gptbridge_specs.errors import suggestion
from gptbridge_specs.imports.reading import Line, Reading

_SUGGESTIONS = 100  # unknown keys that get one: each takes a millisecond
SIZES = tuple(
    f"model.{name}"
    for name in ("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "max_position_embeddings")
)
Action = Callable[[Reading, str, Any], str]  # returns what became of the key


@dataclass(frozen=True, slots=True)
class Row:
    """Keys that are treated alike: words of dotted names, with {a,b} for several and * for any.

    `default` is what the system takes where the key is absent.
    """

    keys: str
    action: Action
    default: Any = None


@dataclass(frozen=True)
class System:
    """One system's configuration.

    `combine` decides the fields that depend on several keys; `fixed` are what its code does whatever the
    configuration says; `notes` what its runs do otherwise than ours.
    """

    title: str
    rows: tuple[Row, ...]
    combine: Callable[[Reading], None]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    also: tuple[str, str] = ("", "")  # a section, and another that holds its keys in some releases
    required: tuple[str, ...] = (*SIZES, "training.seq_length", "schedule.max_lr")  # no default of ours fits

    def actions(self) -> dict[str, Action]:
        """Return the action of every key, and of every pattern, in the table's order."""
        own = {key: row.action for row in self.rows for key in expanded(row.keys)}
        section, other = self.also
        moved = {
            other + key.removeprefix(section): act for key, act in own.items() if key.startswith(section)
        }
        return {**moved, **own} if section else own

    def defaults(self) -> dict[str, Any]:
        """Return what the system takes for keys that are absent."""
        return {
            key: row.default for row in self.rows if row.default is not None for key in expanded(row.keys)
        }

    def read(self, reading: Reading) -> None:
        """Let every key of a configuration do what its row says; an unknown one is refused."""
        for name, value in self.fixed.items():
            reading.set(name, value)
        actions = self.actions()
        patterns = [key for key in actions if "*" in key]
        known = [key for key in actions if "*" not in key]
        for key, value in reading.given.items():
            action = actions.get(key) or next((actions[p] for p in patterns if fnmatchcase(key, p)), None)
            if action is None:
                near = suggestion(key, known) if len(reading.problems) < _SUGGESTIONS else ""
                reading.refuse(key, f"{self.title} has no such key.{near}")
            elif value is None or value == {}:
                reading.lines.append(Line("unset", key, value, "not set"))
            else:
                reading.lines.append(_line("field", reading, key, value, action))
        for key, value in reading.defaults.items():
            if reading.given.get(reading.key(key)) is None:
                reading.lines.append(_line("default", reading, key, value, actions[key]))
        self.combine(reading)
        for name in self.required if reading.preset is None else ():
            if reading.fields.get(name) is None and name not in reading.answered:
                reading.problems.append(f"nothing in it says {name}: give -o {name}=VALUE")
        for text in self.notes:
            reading.note(text)


def _line(kind: Any, reading: Reading, key: str, value: Any, action: Action) -> Line:
    text = action(reading, key, value)
    return Line("no effect" if text and kind == "field" else kind, key, value, text)


def expanded(keys: str) -> Iterator[str]:
    """Yield the names that a row's keys stand for: `A.{b,c} D` is A.b, A.c and D."""
    for word in keys.split():
        found = re.search(r"\{([^}]*)\}", word)
        if found is None:
            yield word
            continue
        for part in found[1].split(","):
            yield from expanded(word[: found.start()] + part + word[found.end() :])


def to(name: str, words: Mapping[str, Any] | None = None, otherwise: str = "") -> Action:
    """Take the value for a field of ours; `model.*` is the field of the key's own name.

    With `words` the value is one of them, in any case; another is refused, with `otherwise` to say more.
    """

    def act(reading: Reading, key: str, value: Any) -> str:
        target = name.replace("*", key.rpartition(".")[2])
        if words is not None:
            word = str(value).lower()
            if word not in words:
                reading.refuse(key, f"not one of {', '.join(words)}{otherwise and '. ' + otherwise}")
                return ""
            value = words[word]
        reading.set(target, value, key)
        return ""

    return act


def above_one(name: str) -> Action:
    """Take the number for a field of ours where it is not 1, which is what no word of it means."""

    def act(reading: Reading, key: str, value: Any) -> str:
        if (number := reading.whole(key)) != 1:
            reading.set(name, number, key)
        return "as it is here" if number == 1 else ""

    return act


def decides(*names: str) -> Action:
    """Leave the value to the system's `combine`, which decides these fields from it and others."""

    def act(reading: Reading, key: str, value: Any) -> str:
        reading.parts[key] = names
        return ""

    return act


def ignored(why: str) -> Action:
    """Name a key as without effect here, and why."""
    return lambda reading, key, value: why


def only(*allowed: Any, why: str) -> Action:
    """Refuse every other value: what it asks for is not to be had. The allowed ones change nothing."""
    words = [str(value).lower() for value in allowed]

    def act(reading: Reading, key: str, value: Any) -> str:
        number = _number(value)
        if str(value).lower() not in words and (number is None or number not in map(_number, allowed)):
            reading.refuse(key, f"{why}. It may be {' or '.join(map(str, allowed))}")
        return "as it is here"

    return act


def refused(why: str) -> Action:
    """Refuse the key whatever it says."""

    def act(reading: Reading, key: str, value: Any) -> str:
        reading.refuse(key, why)
        return why

    return act


def off(why: str) -> Action:
    """Refuse a switch that is on, a list that is not empty; off it changes nothing."""

    def act(reading: Reading, key: str, value: Any) -> str:
        if value not in ([], "") and (isinstance(value, list) or reading.flag(key)):
            reading.refuse(key, why)
        return "off"

    return act


def option(text: str) -> Action:
    """Hand a value to `gptbridge train` as an option: it is no field of a spec."""

    def act(reading: Reading, key: str, value: Any) -> str:
        if value in ("", False):
            return "not set"
        reading.options.append(text.format(value))
        return f"no field: {text.format(value)} says it"

    return act


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
