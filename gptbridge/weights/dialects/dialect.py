"""What a dialect is: everything that is known of one system's checkpoints, as data.

A dialect is a module with `DIALECT = Dialect(...)`, registered as an entry point in the group
`gptbridge.dialects` under its name. Nothing else has to know it: what it holds is found by its tensors'
names, read, written, cut for ranks, put together again, inspected and verified from this table.

    from gptbridge.weights.configs.rows import Key
    from gptbridge.weights.configs.table import ConfigTable
    from gptbridge.weights.dialects.dialect import Dialect
    from gptbridge.weights.dialects.files import Files, Place
    from gptbridge.weights.layouts.rules import Layout, rules

    DIALECT = Dialect(
        "toy",
        layouts=(
            Layout(
                "toy",
                "plain",
                rules(
                    top={"wte.weight": ("tokens.table", "v i"), ...},
                    block={"mlp.c_fc.weight": ("up.matrix", "f i"), ...},
                    blocks="layer.{}.",
                ),
            ),
        ),
        config=ConfigTable(files=("toy.yaml",), rows=(Key("hidden_size", ("width",)), ...)),
        files=Files(Place("safetensors", "toy.safetensors"), single=("toy.safetensors",)),
    )
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptbridge.errors import BadInput
from gptbridge.weights.configs.table import ConfigTable
from gptbridge.weights.dialects.files import Files
from gptbridge.weights.formats import WeightFile
from gptbridge.weights.layouts.rules import Layout
from gptbridge_specs import ModelSpec

if TYPE_CHECKING:
    from gptbridge.weights.canonical.lora import Lora
    from gptbridge.weights.conversion.target import Target, TargetFile

Contents = Mapping[str, Any]  # file name -> content: text, bytes, or data for JSON or YAML by its ending


def configuration_alone(target: Target, files: Sequence[TargetFile]) -> Contents:
    """Return the configuration under the first of its names, if it lies in a file of its own."""
    names = target.dialect.config.files
    return {names[0]: target.config()} if names else {}


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """Adapters that lie beside the weights, in files of their own.

    `read(folder, model, stack, alpha=)` returns what lies there, None for nothing; `stack` closes it and
    `alpha` is the user's. `write(lora, model, element types, folder)` returns the names of its files.
    """

    read: Callable[..., Lora | None]
    write: Callable[[Lora, ModelSpec, Mapping[str, str], Path], list[str]]


@dataclass(frozen=True)
class Dialect:
    """One system's checkpoints.

    `name` is what the command line calls it. `layouts` are tables of tensor names and axes, the one that is
    written by default first; a variant whose name has a space is read and not written. `config` and
    `files` say the rest of what lies on the disk. Where tensors fit several dialects, the one of the
    lowest `preference` is taken.

    `companions(target, weight files)` returns what is written beside the weights: the configuration, and
    whatever the system's software wants to find. `fitting(first file)` narrows the layouts down by what
    a file says of itself, to none if that is another system's. `padded`: the embedding may have more rows
    than the configuration has words.
    `adapters` may lie beside the weights. `same_names` are dialects whose tensors have the same names, so
    that their configuration may lie here. `virtual_stage(tensor name)` is the virtual pipeline stage
    that a name says, 0 for none. `formats` are those of the files that it may lie in, () for any.
    `seen(file)` returns a file as the dialect has it, such as with a tensor of several layers as one of each.
    """

    name: str
    layouts: tuple[Layout, ...]
    files: Files
    config: ConfigTable = field(default_factory=ConfigTable)
    aliases: tuple[str, ...] = ()
    preference: int = 100
    companions: Callable[[Target, Sequence[TargetFile]], Contents] = configuration_alone
    fitting: Callable[[WeightFile], tuple[Layout, ...]] | None = None
    padded: bool = False
    adapters: AdapterFiles | None = None
    same_names: tuple[str, ...] = ()
    virtual_stage: Callable[[str], int] | None = None
    formats: tuple[str, ...] = ()
    seen: Callable[[WeightFile], WeightFile] | None = None

    def __post_init__(self) -> None:
        """Refuse a table that contradicts itself, with ValueError."""
        if not self.written_layouts:
            raise ValueError(f"{self.name} has no layout that is written")
        for layout in self.layouts:
            if layout.dialect != self.name:
                raise ValueError(f"{self.name} has a layout of {layout.dialect}")

    @property
    def written_layouts(self) -> tuple[Layout, ...]:
        """The variants that can be written."""
        return tuple(layout for layout in self.layouts if " " not in layout.variant)

    def own_names(self) -> list[str]:
        """Return regular expressions of the names, at any depth, of what a checkpoint consists of."""
        return [*(re.escape(name) for name in self.config.files if "*" not in name), *self.files.own_names()]

    def layouts_for(self, weights: WeightFile) -> tuple[Layout, ...]:
        """Return the layouts that `weights`, the first file, may have; BadInput for what is not read."""
        if self.formats and weights.format not in self.formats:
            problem = f"is of the format {weights.format}, which {self.name} is never in"
            raise BadInput(problem, where=weights.path, allowed=", ".join(self.formats))
        return self.fitting(weights) if self.fitting else self.layouts
