"""Which files a dialect's checkpoints lie in: where they are looked for, and where they are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gptbridge.weights.formats import Tree, WeightFile

if TYPE_CHECKING:
    from gptbridge.weights.canonical.cutting import Stage
    from gptbridge.weights.conversion.target import Split, Target

_RANK = re.compile(r"\{(tensor|pipeline):0(\d)\}")
_OPTIONAL = re.compile(r"\[(.*)\]")


@dataclass(frozen=True)
class Ranked:
    """Where the file of each tensor and pipeline rank lies, in one expression that is written and read.

    `mp_rank_{tensor:02}[_{pipeline:03}]` stands for a file, or with `inner` for a folder that holds one of
    those files, the first of which is written. The tensor rank comes first; what is in brackets is there
    for several stages alone. Ranks of several dialects may lie in the same places: then `tells_dialect` is
    False. A folder that holds one of `passed_over` in place of those files is of no rank, whatever its name.
    """

    expression: str
    inner: tuple[str, ...] = ()
    tells_dialect: bool = True
    passed_over: tuple[str, ...] = ()
    folder: str = ""  # in which they are written

    def path(self, tensor: int, pipeline: int, split: Split) -> str:
        """Return the path of one rank's file."""
        name = _OPTIONAL.sub(r"\1" if split.pipeline > 1 else "", self.expression)
        name = name.format(tensor=tensor, pipeline=pipeline)
        return "/".join((*([self.folder] if self.folder else []), name, *self.inner[:1]))

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What matches a rank's file or folder; its groups are the tensor and the pipeline rank."""
        marked = _OPTIONAL.sub(r"(?:\1)?", self.expression.replace(".", r"\."))
        return re.compile(_RANK.sub(r"([0-9]{\2,5})", marked))


@dataclass(frozen=True, slots=True)
class RankFolders:
    """Ranks whose places do not say which part of which stage they hold.

    `find(folder, its names)` returns the files of all ranks, in order, () where there are none.
    `stages(files, root, strategy)` finds out from their content; `strategy` is what the user names for it.
    """

    find: Callable[[Path, Sequence[str]], tuple[Path, ...]]
    stages: Callable[[Sequence[WeightFile], Path, Path | None], list[Stage]]


@dataclass(frozen=True, slots=True)
class Pointer:
    """A file whose text names the folder beside it that holds the weights.

    `folders_of` returns the names that the folder may have for the text, () for what is none of `allowed`.
    """

    name: str
    folders_of: Callable[[str], tuple[str, ...]]
    allowed: str


@dataclass(frozen=True, slots=True)
class Unread:
    """A form of checkpoint that is not read: the names of its files, what it is, and what to do.

    `pattern` is a regular expression. It is none where the file `unless` lies there too.
    """

    pattern: str
    problem: str
    hint: str
    unless: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where weights are written, and in which format (a name of formats.WRITERS).

    `whole` is the file of a checkpoint that is not cut; `ranked(tensor rank, pipeline rank, split)` that of
    a rank, None for one that is never cut. `tree` is the structure around the tensors of a file that
    nests, given their names; None: one dict.
    """

    format: str
    whole: str
    ranked: Callable[[int, int, Split], str] | None = None
    tree: Callable[[Sequence[str], Target], Tree] | None = None


@dataclass(frozen=True)
class Files:
    """The files of a dialect. Those of another may lie in the same places: content decides.

    `single` are names of a whole checkpoint's file, the first that exists; `*` stands for anything.
    `folders` are folders inside the checkpoint's in which ranks may lie. `variants` are the places of
    variants that are written elsewhere. `others` are regular expressions of whatever
    else a checkpoint consists of: what is none of its files is not overwritten.
    """

    written: Place
    single: tuple[str, ...] = ()
    ranked: tuple[Ranked, ...] = ()
    rank_folders: RankFolders | None = None
    folders: tuple[str, ...] = ()
    pointers: tuple[Pointer, ...] = ()
    unread: tuple[Unread, ...] = ()
    variants: Mapping[str, Place] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def place(self, variant: str) -> Place:
        """Return where a variant is written."""
        return self.variants.get(variant, self.written)

    def own_names(self) -> list[str]:
        """Return regular expressions of the names, at any depth, that are a checkpoint's own."""
        named = [*self.single, *self.folders, *(pointer.name for pointer in self.pointers)]
        named += [name for ranked in self.ranked for name in ranked.inner]
        patterns = [ranked.pattern.pattern for ranked in self.ranked]
        escaped = (re.escape(name).replace(r"\*", ".*") for name in named)
        return [*escaped, *patterns, *self.others]
