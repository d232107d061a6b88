"""What to write for a dialect: which files, and which box of which weight each tensor in them is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gptbridge.errors import UsageError
from gptbridge.weights.canonical import parameters
from gptbridge.weights.formats import TensorInfo
from gptbridge.weights.layouts.axes import CUT, Axes, letter_sizes
from gptbridge.weights.layouts.boxes import Box, shape_of
from gptbridge.weights.layouts.rules import Layout, NativeTensor, canonical_axes
from gptbridge_specs import ModelSpec

_PADDING_UNIT = 128  # Megatron and FleetX pad the vocabulary to a multiple of this x tensor ranks


@dataclass(frozen=True, slots=True)
class Split:
    """Over how many ranks the target is cut."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def whole(self) -> bool:
        """One file holds everything."""
        return self.tensor == self.pipeline == 1


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """A tensor to write: a box of a canonical weight, stored as `axes`."""

    info: TensorInfo
    canonical: str
    box: Box
    axes: Axes


@dataclass(frozen=True, slots=True)
class TargetFile:
    """A file to write, relative to the output folder."""

    name: str
    format: str
    tensors: tuple[TargetTensor, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a dialect puts the weights of tensor rank t of stage p, and in which format."""

    format: str
    whole: str
    ranked: Callable[[int, int, Split], str] | None = None  # None: cannot be split


_PLACES: Mapping[str, _Place] = {
    "torch": _Place("safetensors", "model.safetensors"),
    "gptbridge": _Place("safetensors", "model.safetensors"),
    "paddle": _Place("pdparams", "model_state.pdparams"),
    "mindspore": _Place("ckpt", "gpt2.ckpt", lambda t, p, split: f"rank_{p * split.tensor + t}/gpt2.ckpt"),
    "fleetx": _Place(
        "pdparams",
        "model.pdparams",
        lambda t, p, split: f"mp_{t:02d}_sharding_00_pp_{p:02d}/model.pdparams",
    ),
    "modelscope": _Place(
        "torch",
        "model/mp_rank_00_model_states.pt",
        lambda t, p, split: f"model/mp_rank_{t:02d}_model_states.pt",
    ),
    "megatron": _Place(
        "torch",
        "release/mp_rank_00/model_optim_rng.pt",
        lambda t, p, split: (
            f"release/mp_rank_{t:02d}{f'_{p:03d}' if split.pipeline > 1 else ''}/model_optim_rng.pt"
        ),
    ),
}

_BASE = _Place("torch", "pytorch_model.bin")  # ModelScope's base and large sizes


def plan_files(
    dialect: str,
    layout: Layout,
    model: ModelSpec,
    dtypes: Mapping[str, str],
    split: Split,
    *,
    num_labels: int = 1,
) -> list[TargetFile]:
    """Return the files to write; UsageError where `split` or a head cannot be.

    `dtypes` gives the element type of each canonical weight; those are the weights written.
    `num_labels` is the height of a classifier's head, if `dtypes` has one.
    """
    _check_heads(dialect, layout, dtypes)
    sizes = letter_sizes(model, num_labels=num_labels)
    place = _BASE if layout.variant == "base" else _PLACES[dialect]
    _check_split(dialect, place, model, split)
    files = []
    for stage in range(split.pipeline):
        natives = _stage_natives(layout, model, dtypes, stage, split.pipeline)
        for rank in range(split.tensor):
            name = place.whole if split.whole or place.ranked is None else place.ranked(rank, stage, split)
            tensors = tuple(
                _tensor(native, canonical, sizes, dtypes, rank, split) for native, canonical in natives
            )
            files.append(TargetFile(name, place.format, tensors))
    return files


def _check_split(dialect: str, place: _Place, model: ModelSpec, split: Split) -> None:
    if not split.whole and place.ranked is None:
        raise UsageError(
            f"{dialect} checkpoints are never split",
            hint="Leave out --tensor-parallel and --pipeline-parallel",
        )
    if split.pipeline > 1 and dialect == "modelscope":
        raise UsageError("ModelScope has no pipeline parallelism", hint="Leave out --pipeline-parallel")
    if model.num_layers % split.pipeline:
        raise UsageError(f"--pipeline-parallel {split.pipeline} does not divide {model.num_layers} layers")
    for letter, what in zip("nf", ("attention heads", "feed-forward width"), strict=True):
        size = letter_sizes(model)[letter]
        if size % split.tensor:
            raise UsageError(f"--tensor-parallel {split.tensor} does not divide {size} ({what})")
    if model.vocab_size % split.tensor:
        unit = _PADDING_UNIT * split.tensor
        padded = -(-model.vocab_size // unit) * unit
        raise UsageError(
            f"--tensor-parallel {split.tensor} does not divide the vocabulary of {model.vocab_size}",
            hint=f"Pad it: --vocab-size {padded}",
        )


def _check_heads(dialect: str, layout: Layout, dtypes: Mapping[str, str]) -> None:
    held = {rule.canonical for rule in layout.rules}
    for name, what in (("lm_head.weight", "a head of its own"), ("score.weight", "a classifier's head")):
        if name in dtypes and name not in held:
            raise UsageError(
                f"the model has {what} ({name}), and {dialect} ({layout.variant}) has no place for it"
            )


def _stage_natives(
    layout: Layout, model: ModelSpec, dtypes: Mapping[str, str], stage: int, stages: int
) -> list[tuple[NativeTensor, str]]:
    """Return the tensors of a stage, each with the canonical weight that it holds."""
    share = model.num_layers // stages
    first = stage * share
    held: list[tuple[str, str]] = []  # name under which the layout is asked, canonical weight
    known = [parameter.name for parameter in parameters(model)]
    for name in [name for name in (*known, "score.weight") if name in dtypes]:
        if name.startswith("h."):
            _, number, rest = name.split(".", 2)
            if first <= int(number) < first + share:
                local = int(number) - first if layout.layers_count_from_stage else int(number)
                held.append((f"h.{local}.{rest}", name))
        elif stage == (0 if name.startswith("w") else stages - 1):
            held.append((name, name))
    canonical = dict(held)
    natives = layout.natives(canonical, model.num_layers)
    listed = [(native, canonical[native.canonical]) for native in natives]
    if stages > 1 and stage == stages - 1 and model.tie_word_embeddings:
        rules = {rule.canonical: rule for rule in layout.rules}
        listed += [
            (NativeTensor(native, name, rules[name].axes, None), name)
            for name, native in layout.repeated_in_last_stage
        ]
    return listed


def _tensor(
    native: NativeTensor,
    canonical: str,
    sizes: Mapping[str, int],
    dtypes: Mapping[str, str],
    rank: int,
    split: Split,
) -> TargetTensor:
    box = {letter: (0, sizes[letter]) for letter in canonical_axes(canonical).letters}
    cut = next((letter for letter in native.axes.letters if letter in CUT), None)
    if cut is not None:
        share = sizes[cut] // split.tensor
        box[cut] = (rank * share, (rank + 1) * share)
    if native.part is not None:
        box["p"] = (native.part, native.part + 1)
    info = TensorInfo(native.name, dtypes[canonical], shape_of(box, native.axes))
    return TargetTensor(info, canonical, box, native.box_axes)
