"""The formats that a model is exported to: who writes each, what it takes, what it cannot hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gptbridge.data.tokenizers.bpe_files import GPT2_SPLIT
from gptbridge.errors import BackendMissing, UsageError, from_checkout
from gptbridge.exporting.draft import Draft
from gptbridge.exporting.gguf import stored_otherwise, write_gguf
from gptbridge.exporting.huggingface import write_huggingface
from gptbridge.weights.opening import Opened


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing that a format cannot hold: the field, its value where it is broken, and why."""

    field: str
    broken: Callable[[Draft], object]  # the value that is refused; None for none
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format. `dtypes` are the element types of the matrices, the first by default, and how far the
    logits may be off, by the largest of them. Packages are named as they are imported.
    """

    title: str
    backend: str = ""  # whose framework writes it, by `gptbridge_export`
    write: Callable[[Draft, Path], None] | None = None  # what writes it without a framework
    writing: tuple[str, ...] = ()  # packages that writing takes, beside the framework
    running: tuple[str, ...]  # packages that the artefact's own model.py takes, beside numpy
    dtypes: Mapping[str, float]
    files: tuple[str, ...]  # regular expressions of what is written
    refusals: tuple[Refusal, ...] = ()
    caution: str = ""  # what whoever is given the artefact must know
    remark: Callable[[Draft], str | None] = lambda draft: None  # the same, of one model

    def cautions(self, draft: Draft) -> list[str]:
        """Return what whoever is given the artefact of a model must know."""
        return [words for words in (self.caution, self.remark(draft)) if words]


EXACT = 1e-5  # for float32, and whatever is written as it was stored
_FP32 = {"float32": EXACT}

_LLAMA = "llama.cpp"
_GGUF_REFUSES = (
    Refusal(
        "model.activation",
        lambda draft: None if draft.model.activation == "gelu_tanh" else draft.model.activation,
        f"{_LLAMA} computes GPT-2 with gelu_tanh, whatever the file says, and without a word",
    ),
    Refusal(
        "model.num_attention_heads",
        lambda draft: draft.model.num_attention_heads if draft.model.head_size < 2 else None,
        f"{_LLAMA} aborts on heads of one number",
    ),
    Refusal(
        "tokenizer",
        lambda draft: f"none ({draft.without})" if draft.tokenizer is None else None,
        f"{_LLAMA} aborts without a vocabulary: --tokenizer names one",
    ),
    Refusal(
        "tokenizer",
        lambda draft: type(draft.tokenizer).__name__ if draft.tokenizer and not draft.bpe else None,
        "a GPT-2 in GGUF has a byte-level BPE and no other",
    ),
    Refusal(
        "tokenizer",
        lambda draft: "another rule of splitting" if _splits_otherwise(draft) else None,
        f"{_LLAMA} would split texts by GPT-2's rule, into other tokens",
    ),
    Refusal(
        "tokenizer.end_of_text",
        lambda draft: "none" if draft.tokenizer and draft.tokenizer.end_of_text is None else None,
        f"{_LLAMA} would take token 11 for it",
    ),
)


def _splits_otherwise(draft: Draft) -> bool:
    return bool(draft.bpe) and (
        draft.bpe["pre_tokenizer"] != GPT2_SPLIT or draft.bpe["normalizer"] is not None
    )


FORMATS: Mapping[str, Format] = {
    "huggingface": Format(
        title="safetensors and config.json, as transformers has them",
        write=write_huggingface,
        running=("torch", "transformers"),
        dtypes={**_FP32, "float16": 2e-2, "bfloat16": 1e-1},
        files=(),
    ),
    "gguf": Format(
        title="one file for llama.cpp and its kin",
        write=write_gguf,
        writing=("gguf",),
        running=("gguf",),
        dtypes={**_FP32, "float16": 2e-2, "q8_0": 5e-2},
        files=(r"model\.gguf",),
        refusals=_GGUF_REFUSES,
        remark=stored_otherwise,
    ),
    "onnx": Format(
        title="one graph for whole texts and for going on from keys and values, of any batch and length",
        backend="torch",
        writing=("onnx", "onnxscript"),
        running=("onnxruntime",),
        dtypes=_FP32,
        files=(r"model\.onnx(\.data)?",),
    ),
    "torch-export": Format(
        title="a program of torch.export, of any batch and length",
        backend="torch",
        running=("torch",),
        dtypes=_FP32,
        files=(r"model\.pt2",),
        caution="a .pt2 file holds a pickle: torch.export.load runs whatever code lies in it. "
        "Load none that a stranger gives you",
    ),
    "paddle-inference": Format(
        title="a program and its parameters for paddle.inference, of any batch and length",
        backend="paddle",
        running=("paddle",),
        dtypes=_FP32,
        files=(r"model\.json", r"model\.pdiparams"),
    ),
    "mindir": Format(
        title="a graph for MindSpore, of one text as long as the model has positions",
        backend="mindspore",
        running=("mindspore",),
        dtypes=_FP32,
        files=(r"model(_graph)?\.mindir", r"model_variables", r"data_\d+"),
        caution="the graph has no cache: each new token takes a pass over all positions",
    ),
}


def find_format(name: str) -> Format:
    """Return the format called `name`; UsageError names those that there are."""
    if name not in FORMATS:
        raise UsageError(f"there is no format {name!r}", where="--format", allowed=", ".join(FORMATS))
    return FORMATS[name]


def absent(packages: tuple[str, ...]) -> list[str]:
    """Return those of `packages` that are not installed; none is imported."""
    return [name for name in packages if find_spec(name) is None]


def require_packages(name: str, packages: tuple[str, ...]) -> None:
    """Raise BackendMissing for packages that are not installed."""
    if missing := absent(packages):
        raise BackendMissing(
            f"needs {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not installed",
            where=f"--format {name}",
            hint=from_checkout("export"),
        )


def require_held(name: str, draft: Draft) -> None:
    """Raise UsageError with a line for each thing that the format cannot hold."""
    lines = [
        f"{refusal.field}={value}: {refusal.reason} (--format {name})"
        for refusal in FORMATS[name].refusals
        if (value := refusal.broken(draft)) is not None
    ]
    if lines:
        raise UsageError("\n".join(lines))


def choose_dtype(name: str, dtype: str | None, opened: Opened) -> str:
    """Return the element type; for None the stored one, or the format's first where it has no one such.

    UsageError for one that the format has not.
    """
    allowed = list(FORMATS[name].dtypes)
    if dtype is None:
        stored = {weight.dtype for weight in opened.weights.values()}
        return stored.pop() if len(stored) == 1 and stored <= set(allowed) else allowed[0]
    chosen = _SHORT.get(dtype, dtype)
    if chosen not in allowed:
        raise UsageError(f"{name} has no element type {dtype!r}", where="--dtype", allowed=", ".join(allowed))
    return chosen


_SHORT = {"f32": "float32", "fp32": "float32", "f16": "float16", "fp16": "float16", "bf16": "bfloat16"}
