"""The rows of a configuration: each is read and written by itself, and has fields and keys of its own.

A field is one of ModelSpec, or of what stands beside the model: `num_labels` (a classifier's classes),
`lora_alpha`, and the ids of special tokens (TOKEN_KEYS). Every field belongs to one row at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gptbridge.errors import BadInput, UsageError, printable
from gptbridge.weights.configs.numbers import whole_number
from gptbridge_specs import ModelSpec

if TYPE_CHECKING:
    from gptbridge.weights.canonical.lora import Lora

Content = Mapping[str, Any]  # the part of a configuration that describes the model

# Special tokens, under the same keys in every configuration that has them.
TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
BESIDE = ("num_labels", "lora_alpha", *TOKEN_KEYS)  # fields that are not the model's


@dataclass(frozen=True, slots=True)
class Described:
    """What a configuration is written for."""

    model: ModelSpec
    num_labels: int | None = None  # of a classifier
    tokens: Mapping[str, int] = field(default_factory=dict)  # by TOKEN_KEYS
    dtype: str = "float32"  # of the embedding
    lora: Lora | None = None  # kept apart from the weights


class Row:
    """One row: `fields` that are read from it and no other, `keys` of the file that it reads or writes."""

    fields: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def read(self, content: Content, where: object) -> Mapping[str, Any]:
        """Return the fields that `content` says; BadInput, naming the key, for what cannot be."""
        return {}

    def write(self, described: Described) -> Mapping[str, Any]:
        """Return the keys to write; UsageError for a value that the file has no word for."""
        return {}

    def assumed(self, content: Content) -> Mapping[str, Any]:
        """Return fields that `content` leaves open and the system's releases differ in, as is most likely."""
        return {}

    def not_computed(self, model: ModelSpec) -> str | None:
        """Return what of `model` the system's software computes otherwise, whatever the file says."""
        return None


@dataclass(frozen=True)
class _Field(Row):
    """A field of the ModelSpec, and the keys that say it, the one that is written first."""

    field: str
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", (self.field,))
        object.__setattr__(self, "keys", self.names)


@dataclass(frozen=True)
class _Stated(_Field):
    """A field whose value the file states.

    `absent` is what the system takes where the file leaves the keys out; None: what ModelSpec takes.
    `hard_coded` is what its software computes whatever the file says: another value is written for the
    way back, and noted; that value itself is not written.
    """

    absent: Any = field(default=None, kw_only=True)
    hard_coded: Any = field(default=None, kw_only=True)

    def not_computed(self, model: ModelSpec) -> str | None:
        """Return where the model differs from what is hard-coded."""
        value = getattr(model, self.field)
        if self.hard_coded in (None, value):
            return None
        return f"{self.field}={self.hard_coded}, and this model has {value}"


class Key(_Stated):
    """A field that the file holds as it is: `Key("hidden_size", ("n_embd",))`."""

    def read(self, content: Content, where: object) -> Mapping[str, Any]:
        """Return the first of the keys that is there."""
        stated = [content[name] for name in self.keys if name in content]
        if stated:
            return {self.field: stated[0]}
        return {} if self.absent is None else {self.field: self.absent}

    def write(self, described: Described) -> Mapping[str, Any]:
        """Return the first key, with the model's value."""
        model = described.model
        value = model.ffn_size if self.field == "ffn_hidden_size" else getattr(model, self.field)
        return {} if value == self.hard_coded else {self.keys[0]: value}


@dataclass(frozen=True)
class Words(_Stated):
    """A field that the file spells in its own words: `Words("activation", ("act",), {"gelu": "gelu_tanh"})`.

    Of several words for one value the first is written.
    """

    words: Mapping[str, str] = field(default_factory=dict)
    likely: Callable[[Content], str] | None = None  # in place of `absent`, where that is not certain

    def read(self, content: Content, where: object) -> Mapping[str, Any]:
        """Return what the first of the keys that is there means."""
        for name in self.keys:
            if name in content:
                word = content[name]
                if not isinstance(word, str) or word not in self.words:
                    problem = f"{name} is {printable(word)!r}"
                    raise BadInput(problem, where=where, allowed=", ".join(self.words))
                return {self.field: self.words[word]}
        return {} if self.absent is None else {self.field: self.absent}

    def assumed(self, content: Content) -> Mapping[str, Any]:
        """Return what the field most likely is where no key is there."""
        if self.likely is None or any(name in content for name in self.keys):
            return {}
        return {self.field: self.likely(content)}

    def write(self, described: Described) -> Mapping[str, Any]:
        """Return the first key, with the word for the model's value."""
        value = getattr(described.model, self.field)
        if value == self.hard_coded:
            return {}
        word = next((word for word, meant in self.words.items() if meant == value), None)
        if word is None:
            raise UsageError(
                f"the model's {self.field} is {value}, which the configuration has no word for",
                where=self.keys[0],
                allowed=", ".join(dict.fromkeys(self.words.values())),
            )
        return {self.keys[0]: word}


@dataclass(frozen=True)
class Pair(_Field):
    """A field with a quirk: a function to read it (None: the file does not say it), and one to write it."""

    reading: Callable[[Content, object], Any]
    writing: Callable[[Described], Mapping[str, Any]]

    def read(self, content: Content, where: object) -> Mapping[str, Any]:
        """Return what the function reads."""
        value = self.reading(content, where)
        return {} if value is None else {self.field: value}

    def write(self, described: Described) -> Mapping[str, Any]:
        """Return what the function writes."""
        return self.writing(described)


@dataclass(frozen=True)
class _OfKey(Row):
    """What has one key."""

    key: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", (self.key,))


@dataclass(frozen=True)
class Switch(_OfKey):
    """A switch that must have this value, because any other means another architecture.

    `also` are other words for the same, of other releases.
    """

    only: Any
    written: bool = False  # else it is only read
    also: tuple[Any, ...] = ()

    def read(self, content: Content, where: object) -> Mapping[str, Any]:
        """Refuse any other value."""
        if content.get(self.key, self.only) not in (self.only, *self.also):
            allowed = str(self.only).lower() if isinstance(self.only, bool) else str(self.only)
            raise BadInput(f"{self.key} is {printable(content[self.key])}", where=where, allowed=allowed)
        return {}

    def write(self, described: Described) -> Mapping[str, Any]:
        """Return the switch, if it is written."""
        return {self.key: self.only} if self.written else {}


@dataclass(frozen=True)
class Written(_OfKey):
    """A key that is written for the system's own software and not read: a value, or a function's."""

    value: Any

    def write(self, described: Described) -> Mapping[str, Any]:
        """Return the key with its value."""
        return {self.key: self.value(described) if callable(self.value) else self.value}


@dataclass(frozen=True)
class Token(_OfKey):
    """The id of a special token. Files that hold lists of ids are read as if they left them out."""

    null: bool = False  # written as null where there is none

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "fields", self.keys)

    def read(self, content: Content, where: object) -> Mapping[str, Any]:
        """Return the token, if it is a plain id."""
        token = content.get(self.key)
        return {self.key: token} if type(token) is int and token >= 0 else {}

    def write(self, described: Described) -> Mapping[str, Any]:
        """Return the token, if there is one."""
        if self.key not in described.tokens:
            return {self.key: None} if self.null else {}
        return {self.key: described.tokens[self.key]}


TOKENS = tuple(Token(key) for key in TOKEN_KEYS)


def labels(*keys: str, writing: Callable[[int], Mapping[str, Any]] | None = None) -> Pair:
    """Return the row of a classifier's number of classes: under `keys`, or counted from their names.

    `writing` gives the keys for a number of classes; absent: the first of `keys` with it.
    """

    def read(content: Content, where: object) -> int | None:
        names = content.get("id2label")
        counts = [content[key] for key in keys if content.get(key) is not None]
        counts += [len(names)] if isinstance(names, dict) else []
        return whole_number(counts[0], where) if counts else None

    def write(described: Described) -> Mapping[str, Any]:
        if described.num_labels is None:
            return {}
        return writing(described.num_labels) if writing else {keys[0]: described.num_labels}

    return Pair("num_labels", (*keys, "id2label"), read, write)
