"""A checkpoint of any dialect, opened: its model, and its canonical weights in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from gptbridge.checkpoint import manifest
from gptbridge.checkpoint.state import STATE_FILE
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.errors import BadInput, printable
from gptbridge.weights.architecture import parameters, weight_axes
from gptbridge.weights.architecture import sizes as letter_sizes
from gptbridge.weights.configs.model import build_model
from gptbridge.weights.configs.table import ConfigFacts
from gptbridge.weights.conversion.assembly import assemble, stored_sizes
from gptbridge.weights.conversion.canonical_weight import CanonicalWeight
from gptbridge.weights.conversion.configuration import find_configuration
from gptbridge.weights.conversion.cutting import Stage
from gptbridge.weights.conversion.discovery import find_files
from gptbridge.weights.conversion.identifying import Identified, identify
from gptbridge.weights.conversion.lora import Lora, split_lora
from gptbridge.weights.formats import WeightFile, open_weights
from gptbridge.weights.formats.source import allow_open_files
from gptbridge.weights.layouts.boxes import slabs
from gptbridge.weights.layouts.matching import RANKS_HINT
from gptbridge.weights.layouts.stored import StoredAxes
from gptbridge_specs import ModelSpec

_COMPARED_ITEMS = 1 << 20


@dataclass(frozen=True, slots=True)
class Told:
    """What the user says about a checkpoint, because it does not say so itself."""

    dialect: str | None = None
    model: ConfigFacts = field(default_factory=ConfigFacts)
    strategy: Path | None = None  # the strategy file of ranks, or the folder of them
    lora_alpha: float | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """An open checkpoint. `sizes` are those of the stored tensors: `v` counts padded rows too."""

    path: Path
    dialect: str
    variant: str
    model: ModelSpec
    sizes: Mapping[str, int]
    weights: Mapping[str, CanonicalWeight]
    lora: Lora | None
    stages: tuple[Stage, ...]
    dropped: tuple[str, ...]
    config_file: str
    tokens: Mapping[str, int]  # special tokens, by TOKEN_KEYS
    activation_is_fixed: bool  # by the layout: its software knows one alone
    warnings: tuple[str, ...] = ()  # of damaged checkpoints passed over, of a configuration overruled

    @property
    def files(self) -> list[WeightFile]:
        """The weight files of all ranks, stage by stage."""
        return list(dict.fromkeys(file for stage in self.stages for file in stage.ranks))

    @property
    def num_labels(self) -> int | None:
        """How many classes the classifier's head has, if there is one."""
        return self.sizes["c"] if "score.weight" in self.weights else None

    @property
    def names(self) -> list[str]:
        """The model's weights in canonical order."""
        known = [parameter.name for parameter in parameters(self.model)]
        return [name for name in (*known, "score.weight") if name in self.weights]

    @property
    def all_weights(self) -> Mapping[str, CanonicalWeight]:
        """The weights of the model and of its LoRA, if that is kept apart."""
        return {**self.weights, **(self.lora.weights if self.lora else {})}

    def merged(self) -> Source:
        """Return the checkpoint with its LoRA, if it has one, added to the weights."""
        if self.lora is None:
            return self
        return replace(self, weights=self.lora.merged(self.weights), lora=None)


def open_source(path: Path, stack: ExitStack, told: Told | None = None, *, verify: bool = True) -> Source:
    """Open the checkpoint at `path`, of a run folder its newest good one; `stack` closes it.

    A checkpoint of a run is compared with its manifest. The CRCs that files declare are checked unless
    `verify` is False, and the caller does it.
    BadInput for anything that is missing, left over or contradictory; UsageError for what no file says
    and `told` does not either.
    """
    warnings: list[str] = []
    try:
        source = _open(_unharmed(path, warnings.append), stack, told or Told(), verify)
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}", where=path) from error
    return replace(source, warnings=(*warnings, *source.warnings))


def _unharmed(path: Path, warn: Callable[[str], None]) -> Path:
    """Return the newest good checkpoint of a run folder, else `path`; BadInput for a damaged one of ours."""
    newest = CheckpointStore(path / "checkpoints").newest_good(warn)
    folder = path if path.is_dir() else path.parent
    if newest is None and all((folder / name).is_file() for name in (STATE_FILE, manifest.MANIFEST_FILE)):
        manifest.verify(folder)
    return newest or path


def _open(path: Path, stack: ExitStack, told: Told, verify: bool) -> Source:
    found = find_files(path)
    allow_open_files(len(found.files))
    files = [stack.enter_context(open_weights(file, verify=verify)) for file in found.files]
    what = identify(found, files, dialect=told.dialect, strategy=told.strategy, where=path)
    dialect, match, stages = what.dialect, what.match, what.stages
    declared, config_file = find_configuration(found.root, files[0], dialect)
    stored = stored_sizes(match, stages, path)
    model = _model(what, stored, declared, told.model, path)
    sizes = {**letter_sizes(model), **{x: stored[x] for x in "vcr" if x in stored}}
    alpha = told.lora_alpha if told.lora_alpha is not None else declared.lora_alpha
    weights, lora = split_lora(assemble(match, stages, sizes), sizes["r"], alpha, path)
    if lora is None and dialect.adapters is not None:
        lora = dialect.adapters.read(found.root, model, stack, alpha=told.lora_alpha)
    tied = _drop_tied_head(weights, sizes, declared, path)
    _check_labels(weights, sizes, declared, path)
    return Source(
        path,
        dialect.name,
        match.layout.variant,
        model.model_copy(update={"tie_word_embeddings": tied}),
        sizes,
        weights,
        lora,
        stages,
        match.dropped,
        config_file,
        {key: token for key, token in declared.tokens.items() if token < model.vocab_size},
        len(match.layout.activations) == 1,
        (*what.warnings, *(_overruled(declared, told.model) if config_file else ())),
    )


def _model(
    what: Identified, sizes: Mapping[str, int], declared: ConfigFacts, given: ConfigFacts, where: Path
) -> ModelSpec:
    """Return the model that tensors, files and user say together; BadInput where two disagree."""
    stored = {
        "hidden_size": sizes["i"],
        "num_layers": what.match.num_layers,
        "max_position_embeddings": sizes["t"],
        "ffn_hidden_size": sizes["f"],
    }
    said = declared.merged(given)
    _require_agreement(declared, given, where)
    for name, value in stored.items():
        if said.fields.get(name, value) not in (value, None):
            source = given if name in given.fields else declared
            raise BadInput(
                f"{printable(source.where)} says {name}={printable(said.fields[name])}, "
                f"but the tensors say {value}",
                where=where,
                hint=RANKS_HINT if name == "ffn_hidden_size" else None,
            )
    rows = sizes["v"]
    vocabulary = said.fields.get("vocab_size", rows)
    padded = what.dialect.padded or "vocab_size" in given.fields
    if vocabulary != rows and not (padded and type(vocabulary) is int and 0 < vocabulary < rows):
        raise BadInput(
            f"{printable(said.where)} says vocab_size={printable(vocabulary)}, "
            f"but the embedding has {rows} rows",
            where=where,
        )
    fields = {**said.fields, **stored, "vocab_size": vocabulary}
    if len(what.match.layout.activations) == 1:
        (fields["activation"],) = what.match.layout.activations  # whatever the configuration says
    return build_model(fields, where)


def _require_agreement(declared: ConfigFacts, given: ConfigFacts, where: Path) -> None:
    """Refuse a number of heads that the user and the checkpoint's own configuration say differently."""
    name = "num_attention_heads"
    own, told = declared.fields.get(name), given.fields.get(name)
    if None not in (own, told) and own != told:
        raise BadInput(
            f"{printable(declared.where)} says {name}={printable(own)}, but {given.where} says {told}",
            where=where,
            hint="Leave the option out, or correct the configuration",
        )


def _overruled(declared: ConfigFacts, given: ConfigFacts) -> Iterator[str]:
    """Yield what the user says otherwise than the checkpoint's own configuration, where that may be."""
    for name in ("activation", "layernorm_epsilon"):
        own, told = declared.fields.get(name), given.fields.get(name)
        if None not in (own, told) and own != told:
            file, taken = printable(declared.where), f"{given.where}'s {told} is taken"
            yield f"{file} means {name}={printable(own)}: {taken}"


def _drop_tied_head(
    weights: dict[str, CanonicalWeight], sizes: Mapping[str, int], declared: ConfigFacts, where: Path
) -> bool:
    """Remove a head that only repeats the embedding; tell whether the model's head is tied."""
    head = weights.get("lm_head.weight")
    if head is None:
        return True
    if _equal(head, weights["wte.weight"], sizes):
        del weights["lm_head.weight"]
        return True
    if declared.fields.get("tie_word_embeddings", False):
        raise BadInput(
            f"{printable(declared.where)} says tie_word_embeddings, but the head is not the embedding",
            where=where,
        )
    return False


def _equal(first: CanonicalWeight, second: CanonicalWeight, sizes: Mapping[str, int]) -> bool:
    """Tell whether two weights of the same axes hold the same bytes; copies a slab of each at a time."""
    order = weight_axes(first.name)
    return first.dtype == second.dtype and all(
        first.read(slab[0], order).tobytes() == second.read(slab[0], order).tobytes()
        for slab in slabs([first.whole(sizes)], StoredAxes((order,)), _COMPARED_ITEMS)
    )


def _check_labels(
    weights: Mapping[str, CanonicalWeight], sizes: Mapping[str, int], declared: ConfigFacts, where: Path
) -> None:
    """Refuse a configuration of a classifier that has another number of classes than the head."""
    if "score.weight" in weights and declared.num_labels not in (None, sizes["c"]):
        raise BadInput(
            f"{printable(declared.where)} says {declared.num_labels} classes, "
            f"but score.weight has {sizes['c']}",
            where=where,
        )
