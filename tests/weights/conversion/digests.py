"""The bytes of every file that `gptbridge convert` writes, compared with those in vectors/digests.json.

    python tests/weights/conversion/digests.py          compare; exit code 1 where a file differs
    python tests/weights/conversion/digests.py --write  make today's bytes the expected ones

No file and no part of a file is left out: nothing that is written holds a path, a time or a version.
The conversions go through the command line. What it refuses is expected by its exit code.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Arrays = dict[str, NDArray[Any]]
VECTORS = Path(__file__).with_name("vectors")
EXPECTED = VECTORS / "digests.json"
Found = int | str  # the exit code of a refusal, or the files' digests in the order of their names
_REFUSALS = (2, 5)

_VARIANTS: Mapping[str, tuple[str, ...]] = {
    "torch": ("GPT2Model", "GPT2LMHeadModel"),
    "gptbridge": ("canonical",),
    "paddle": ("GPTForPretraining", "GPTModel"),
    "mindspore": ("GPT2LMHeadModel", "GPT2Model"),
    "fleetx": ("fused", "split", "pipeline"),
    "modelscope": ("large", "base"),
    "megatron": ("version-0", "version-1", "version-2", "version-3", "core", "core-fused-norms"),
}
_NEVER_CUT = ("torch", "gptbridge", "paddle")


@dataclass(frozen=True)
class Sizes:
    """What a conversion may ask of a source."""

    stages: int  # divides its layers
    padded: int  # rows of the embedding that four tensor ranks can share
    cut: int  # fewer rows than it has


@dataclass(frozen=True)
class Source:
    """A checkpoint to convert."""

    name: str
    sizes: Sizes
    options: tuple[str, ...] = ()  # what its files do not say
    has_lora: bool = False
    made_by: tuple[str, str] | None = None  # the source of which it is a result, and the options


_VECTOR, _RUN, _MADE = Sizes(3, 68, 66), Sizes(2, 260, 255), Sizes(2, 64, 59)
_IN_SIX, _IN_FOUR = (f"--tensor-parallel 2 --pipeline-parallel {stages} --vocab-size" for stages in (3, 2))
_RESULTS = (  # read again: what is cut into ranks, and the layouts that no vector has
    ("fleetx 2x3", "hf", _VECTOR, f"--to fleetx {_IN_SIX} 68"),
    ("mindspore 2x3", "hf", _VECTOR, f"--to mindspore {_IN_SIX} 68"),
    ("modelscope 2x1", "hf", _VECTOR, "--to modelscope --tensor-parallel 2 --vocab-size 68"),
    ("modelscope base", "run", _RUN, "--to modelscope --variant base"),
    ("paddle bfloat16", "run", _RUN, "--to paddle --dtype bfloat16"),
    ("torch bfloat16", "run", _RUN, "--to torch --dtype bfloat16"),
    ("fleetx split", "classifier", _MADE, "--to fleetx --variant split"),
    ("mindspore classifier", "classifier", _MADE, "--to mindspore --variant GPT2Model"),
    ("mindspore lora", "lora", _MADE, "--to mindspore"),
    ("version-0", "untied", _MADE, "--to megatron --variant version-0"),
    ("version-1", "untied", _MADE, "--to megatron --variant version-1"),
    ("megatron 2x2", "untied", _MADE, f"--to megatron {_IN_FOUR} 64"),
    ("core 2x2", "run", _RUN, f"--to megatron --variant core {_IN_FOUR} 260"),
)
SOURCES = {
    source.name: source
    for source in (
        Source("hf", _VECTOR),
        Source("paddlenlp", _VECTOR),
        Source("mindformers", _VECTOR, ("--num-attention-heads", "4")),
        Source("run", _RUN),
        Source("untied", _MADE),
        Source("classifier", _MADE),
        Source("lora", _MADE, has_lora=True),
        *(
            Source(name, sizes, has_lora=origin == "lora", made_by=(origin, options))
            for name, origin, sizes, options in _RESULTS
        ),
    )
}
_HIDDEN, _FFN, _POSITIONS, _ROWS, _RANK, _LABELS = 24, 48, 31, 61, 3, 3
_CONFIG = {
    "model_type": "gpt2",
    "vocab_size": _ROWS,
    "n_embd": _HIDDEN,
    "n_head": 4,
    "n_inner": _FFN,
    "n_positions": _POSITIONS,
    "layer_norm_epsilon": 1e-6,
    "resid_pdrop": 0.2,
    "embd_pdrop": 0.2,
    "attn_pdrop": 0.1,
    "initializer_range": 0.03,
    "bos_token_id": 5,
    "eos_token_id": 6,
    "pad_token_id": 7,
}


@dataclass(frozen=True)
class Conversion:
    """One call of the command line."""

    source: Source
    to: str
    variant: str | None = None
    tensor: int = 1
    pipeline: int = 1
    dtype: str | None = None
    vocab_size: int | None = None
    merge_lora: bool = False

    @property
    def name(self) -> str:
        """What digests.json calls it."""
        words = (
            f"{self.source.name} > {self.to}",
            self.variant or "",
            f"{self.tensor}x{self.pipeline}" if self.tensor * self.pipeline > 1 else "",
            self.dtype or "",
            f"v{self.vocab_size}" if self.vocab_size else "",
            "merged" if self.merge_lora else "",
        )
        return " ".join(word for word in words if word)

    @property
    def options(self) -> tuple[str, ...]:
        """The options of the command, defaults left out."""
        given = {
            "--to": self.to,
            "--variant": self.variant,
            "--tensor-parallel": self.tensor if self.tensor > 1 else None,
            "--pipeline-parallel": self.pipeline if self.pipeline > 1 else None,
            "--dtype": self.dtype,
            "--vocab-size": self.vocab_size,
        }
        words = (str(word) for pair in given.items() if pair[1] is not None for word in pair)
        return (*self.source.options, *words, *(("--merge-lora",) if self.merge_lora else ()))


def gptbridge(*arguments: str) -> int:
    """Run the command line in this process and return its exit code: all that is asked of the product."""
    from gptbridge_cli.main import main

    before, sys.argv = sys.argv, ["gptbridge", *arguments]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def convert(source: Path, output: Path, options: Sequence[str]) -> int:
    """Convert without the comparison of logits; the exit code."""
    return gptbridge("convert", str(source), str(output), "--no-verify", "--quiet", *options)


class _Numbers:
    """Fixed numbers, every one a fraction of a power of two: no machine, NumPy or BLAS makes others."""

    def __init__(self, seed: int) -> None:
        self._stream = np.random.RandomState(seed)  # the stream that NumPy promises never to change

    def array(self, *shape: int, bits: int = 20, base: float = 0.0) -> NDArray[np.float32]:
        """Return numbers of so many bits in [base - 1/4, base + 1/4)."""
        whole = self._stream.randint(-(1 << bits), 1 << bits, shape)
        return (base + whole / (4 << bits)).astype(np.float32)


def _gpt2(numbers: _Numbers, layers: int) -> Arrays:
    """Return a GPT-2 by Hugging Face's names, LayerNorms off 1 and 0."""
    h, f = _HIDDEN, _FFN
    linear = {"attn.c_attn": (h, 3 * h), "attn.c_proj": (h, h), "mlp.c_fc": (h, f), "mlp.c_proj": (f, h)}
    weights: Arrays = {"wte.weight": numbers.array(_ROWS, h), "wpe.weight": numbers.array(_POSITIONS, h)}
    norms = ["ln_f"]
    for layer in range(layers):
        norms += [f"h.{layer}.ln_1", f"h.{layer}.ln_2"]
        for name, shape in linear.items():
            weights[f"h.{layer}.{name}.weight"] = numbers.array(*shape)
            weights[f"h.{layer}.{name}.bias"] = numbers.array(shape[1])
    for name in norms:
        weights[f"{name}.weight"] = numbers.array(h, base=1.0)
        weights[f"{name}.bias"] = numbers.array(h)
    return weights


def _write_checkpoint(folder: Path, weights: Arrays, layers: int, **config: Any) -> None:
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**_CONFIG, "n_layer": layers, **config}))
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "sentencepiece.model"):
        (folder / name).write_text(f"these bytes of {name} go along as they are\n")


def _write_untied(folder: Path) -> None:
    """A float16 model with a head of its own."""
    numbers = _Numbers(1)
    weights = {f"transformer.{name}": array for name, array in _gpt2(numbers, 4).items()}
    weights["lm_head.weight"] = numbers.array(_ROWS, _HIDDEN)
    halves = {name: array.astype(np.float16) for name, array in weights.items()}
    _write_checkpoint(folder, halves, 4, activation_function="gelu_new", tie_word_embeddings=False)


def _write_classifier(folder: Path) -> None:
    numbers = _Numbers(2)
    weights = {f"transformer.{name}": array for name, array in _gpt2(numbers, 2).items()}
    weights["score.weight"] = numbers.array(_LABELS, _HIDDEN)
    names = {str(label): f"LABEL_{label}" for label in range(_LABELS)}
    kind = ["GPT2ForSequenceClassification"]
    _write_checkpoint(folder, weights, 2, activation_function="gelu_new", architectures=kind, id2label=names)


def _write_lora(folder: Path) -> None:
    """A model with PEFT's adapter for one of its layers; few bits, so B A is exact in float32."""
    numbers = _Numbers(3)
    _write_checkpoint(folder, _gpt2(numbers, 2), 2, activation_function="gelu")
    adapter, prefix = folder / "adapter", "base_model.model.transformer.h.1.attn.c_attn"
    adapter.mkdir()
    factors = {
        f"{prefix}.lora_A.weight": numbers.array(_RANK, _HIDDEN, bits=7),
        f"{prefix}.lora_B.weight": numbers.array(3 * _HIDDEN, _RANK, bits=7),
    }
    save_file(factors, adapter / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 2 * _RANK, "fan_in_fan_out": True}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))


def make_sources(folder: Path) -> dict[str, Path]:
    """Return where each source is, by its name; those that are no vectors are made in `folder`."""
    vectors = {name: VECTORS / name for name in ("hf", "paddlenlp", "mindformers", "run")}
    made = {name: folder / name for name in ("untied", "classifier", "lora")}
    _write_untied(made["untied"])
    _write_classifier(made["classifier"])
    _write_lora(made["lora"])
    paths = vectors | made
    for source in SOURCES.values():
        if source.made_by is not None:
            origin, options = source.made_by
            paths[source.name] = folder / source.name.replace(" ", "-")
            code = convert(paths[origin], paths[source.name], options.split())
            if code:
                raise AssertionError(f"{source.name} could not be made: exit code {code}")
    return paths


def conversions() -> list[Conversion]:
    """Return every conversion that is guarded."""
    found = [conversion for source in SOURCES.values() for conversion in _of_source(source)]
    assert len({conversion.name for conversion in found}) == len(found)
    return found


def _of_source(source: Source) -> Iterator[Conversion]:
    for to, variants in _VARIANTS.items():
        for variant in (None, *variants):
            forms = list(_forms(source, to, variant))
            yield from forms
            if source.has_lora:
                yield from (replace(form, merge_lora=True) for form in forms)


def _forms(source: Source, to: str, variant: str | None) -> Iterator[Conversion]:
    """What is asked of a dialect's default layout is everything; of one by its name, and of results, less."""
    whole, sizes = Conversion(source, to, variant), source.sizes
    yield whole
    if source.made_by is not None:
        return
    yield replace(whole, dtype="bfloat16")
    padded = replace(whole, vocab_size=sizes.padded)
    if variant is not None:
        yield replace(padded, tensor=4)
        yield replace(padded, tensor=2, pipeline=sizes.stages)
        return
    yield from (replace(whole, dtype=dtype) for dtype in ("float16", "float32", "float64"))
    yield from (padded, replace(whole, vocab_size=sizes.cut))
    yield replace(whole, tensor=2)  # few can share the odd number of rows
    yield replace(padded, pipeline=5)  # nor have the models so many layers
    for tensor, pipeline in itertools.product((1, 2, 4), (1, sizes.stages)):
        if tensor * pipeline > 1:
            cut = replace(padded, tensor=tensor, pipeline=pipeline)
            dtypes = (None,) if to in _NEVER_CUT else (None, "float16", "bfloat16")
            yield from (replace(cut, dtype=dtype) for dtype in dtypes)


def digest_files(folder: Path) -> dict[str, str]:
    """Return a digest of the name and the bytes of every file under `folder`, by its name, sorted."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {
        name: hashlib.sha256(name.encode() + b"\0" + (folder / name).read_bytes()).hexdigest()[:16]
        for name in names
    }


class Guard:
    """Converts in `folder`, from sources that it makes there."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output"
        self._paths = make_sources(folder / "sources")

    def files(self, conversion: Conversion, source: Path | None = None) -> int | dict[str, str]:
        """Convert, from `source` in place of the conversion's own; the exit code, or the files' digests."""
        shutil.rmtree(self._output, ignore_errors=True)
        path = source or self._paths[conversion.source.name]
        code = convert(path, self._output, conversion.options)
        if code == 0:
            return digest_files(self._output)
        if code not in _REFUSALS or self._output.exists():
            raise AssertionError(f"{conversion.name}: ended with {code}, output: {self._output.exists()}")
        return code

    def found(self, conversion: Conversion) -> Found:
        """What digests.json holds of a conversion."""
        files = self.files(conversion)
        return files if isinstance(files, int) else " ".join(files.values())


def difference(files: int | Mapping[str, str], expected: Found | None) -> str | None:
    """Tell how a conversion differs from what is expected, naming its first file that does; None if not."""
    if isinstance(files, int) or not isinstance(expected, str):
        found = f"exit code {files}" if isinstance(files, int) else f"wrote {', '.join(files)}"
        wanted = "files" if isinstance(expected, str) else f"exit code {expected}"
        return None if files == expected else f"{found}, expected {wanted}"
    digests = expected.split()
    for (name, digest), wanted in zip(files.items(), digests, strict=False):
        if digest != wanted:
            return f"{name} (sha256 {digest}..., expected {wanted}...)"
    return None if len(files) == len(digests) else f"{', '.join(files)}, expected {len(digests)} files"


def differences(
    guard: Guard, wanted: Iterable[Conversion], expected: Mapping[str, Found]
) -> Iterator[tuple[Conversion, str]]:
    """Yield the conversions that differ, each with how."""
    for conversion in wanted:
        told = difference(guard.files(conversion), expected.get(conversion.name))
        if told is not None:
            yield conversion, told


def read_expected() -> dict[str, Found]:
    """Return what each conversion is expected to give, by its name."""
    content: dict[str, Found] = json.loads(EXPECTED.read_text())
    return content


def write_expected(guard: Guard) -> None:
    """Make what every conversion gives now the expected."""
    lines = [f"{json.dumps(each.name)}: {json.dumps(guard.found(each))}" for each in conversions()]
    EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make today's bytes the expected ones")
    write = parser.parse_args().write
    start, wanted = time.process_time(), conversions()
    with tempfile.TemporaryDirectory() as folder:
        guard = Guard(Path(folder))
        if write:
            write_expected(guard)
        expected = read_expected()
        told = [f"DIFFERENT {each.name}: {how}" for each, how in differences(guard, wanted, expected)]
    told += [f"NOT MADE {name}" for name in sorted(expected.keys() - {each.name for each in wanted})]
    refused = sum(isinstance(each, int) for each in expected.values())
    seconds = time.process_time() - start
    told.append(f"{len(wanted)} conversions ({refused} refused), {len(told)} differ, {seconds:.0f} s of CPU")
    sys.stdout.write("\n".join(told) + "\n")
    return 1 if len(told) > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
