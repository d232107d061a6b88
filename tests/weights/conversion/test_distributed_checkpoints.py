"""Checkpoints that torch's own ranks saved in parts become what the model in one piece becomes; and back."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from gptbridge.errors import BadInput, UsageError
from gptbridge.weights.formats import open_weights, write_dcp
from gptbridge_specs import ModelSpec
from tests.weights.conversion.checkpoints import (
    HEADS,
    MODEL,
    NO_HINTS,
    arrays_in,
    assert_identical,
    converted,
    digest_of,
    entries_of,
    facts_of,
    random_weights,
    weights_of,
    write_hugging_face,
)
from tests.weights.conversion.commands import Outcome, assert_refused

FRAMEWORKS = Path(__file__).with_name("frameworks")
# 150 MB, most of it in two tensors of each layer.
LARGE = ModelSpec(
    vocab_size=1024,
    hidden_size=1024,
    num_layers=2,
    num_attention_heads=8,
    ffn_hidden_size=6144,
    max_position_embeddings=64,
)
# case -> dialect and variant that it is recognised as, tensors that are left out
CASES = {
    "hf-fsdp2-tp2": ("dcp", "app.model", 160),
    "hf-fsdp4": ("dcp", "model", 160),
    "hf-tp2": ("dcp", "flat", 160),
    "core-fsdp2-tp2": ("megatron", "core-fused-norms in model", 157),
    "stacked-fsdp2-tp2": ("megatron", "core-fused-norms in model", 49),
    "stacked-pp2-tp2": ("megatron", "core-fused-norms", 16),
}

Arrays = dict[str, NDArray[Any]]


def core_of(folder: Path, work: Path) -> Arrays:
    """Megatron-Core's tensors of a model, as its modules name them."""
    files = converted(folder, work, "megatron", variant="core-fused-norms")
    arrays = arrays_in(files / "release" / "mp_rank_00" / "model_optim_rng.pt")
    return {name.removeprefix("model."): array for name, array in arrays.items()}


def stacked(core: Arrays, num_layers: int) -> Arrays:
    """Megatron-Core's tensors with those of all layers in one, as its torch_dist has them."""
    result = {name: array for name, array in core.items() if ".layers." not in name}
    for name in core:
        if ".layers.0." in name:
            layers = [core[name.replace(".0.", f".{number}.")] for number in range(num_layers)]
            result[name.replace(".layers.0.", ".layers.")] = np.stack(layers)
    return result


@pytest.fixture(scope="module")
def made(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a checkpoint for each case of dcp_ranks.py, and of the large model in one piece."""
    folder = tmp_path_factory.mktemp("distributed")
    source, output = folder / "source", folder / "output"
    for name in (source, output):
        name.mkdir()
    large = write_hugging_face(output / "large", LARGE, random_weights(LARGE))
    for whole, model, ending in ((original, MODEL, ""), (large, LARGE, "-large")):
        hugging_face = {f"transformer.{name}": array for name, array in weights_of(whole).items()}
        hugging_face["lm_head.weight"] = hugging_face["transformer.wte.weight"]
        core = core_of(whole, source / f"megatron{ending}")
        for form, arrays in (
            ("hf", hugging_face),
            ("core", core),
            ("stacked", stacked(core, model.num_layers)),
        ):
            save_file(arrays, source / f"{form}{ending}.safetensors")
    command = [sys.executable, str(FRAMEWORKS / "dcp_ranks.py"), str(source), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.rmtree(source)
    return output


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_parts_of_ranks_become_the_model_in_one_piece(
    case: str, made: Path, original: Path, tmp_path: Path
) -> None:
    dialect, variant, left_out = CASES[case]
    folder = made / case
    with open_weights(folder / ".metadata") as weights:
        assert max(len(weights.parts(name)) for name in weights.tensors) >= (2 if "tp2" in case else 4)
    facts = facts_of(folder, HEADS)
    assert (facts.dialect, facts.variant, len(facts.left_out)) == (dialect, variant, left_out)
    assert all("optimizer" in name or "rng_state" in name for name in facts.left_out)
    whole = converted(original, tmp_path / "whole", "torch") / "model.safetensors"
    output = converted(folder, tmp_path / "torch", "torch", hints=HEADS)
    assert (output / "model.safetensors").read_bytes() == whole.read_bytes()
    for to, split in (("megatron", (2, 1)), ("paddle", (1, 1)), ("fleetx", (2, 2))):
        output = converted(folder, tmp_path / to, to, *split, hints=HEADS, vocab_size=62)
        direct = converted(original, tmp_path / f"{to}-direct", to, *split, vocab_size=62)
        files = [path for path in direct.rglob("*") if path.suffix in (".pt", ".pdparams")]
        assert len(files) == split[0] * split[1]
        for file in files:
            assert_identical(arrays_in(output / file.relative_to(direct)), arrays_in(file))


def test_a_part_in_another_place_is_another_model(made: Path, original: Path, tmp_path: Path) -> None:
    """The control of the comparison: two parts of one shape, each where the other belongs."""
    folder = shutil.copytree(made / "hf-tp2", tmp_path / "swapped")
    metadata = (folder / ".metadata").read_bytes()
    first, second = b"__0_0.distcp", b"__1_0.distcp"
    with open_weights(folder / ".metadata") as weights:
        bias = weights.parts("transformer.h.0.mlp.c_fc.bias")
        assert bias[0].info == bias[1].info
    for file in (first, second):
        (folder / file.decode()).rename(folder / f"{file.decode()}.aside")
    (folder / f"{first.decode()}.aside").rename(folder / second.decode())
    (folder / f"{second.decode()}.aside").rename(folder / first.decode())
    assert metadata == (folder / ".metadata").read_bytes()
    with pytest.raises(BadInput):  # the files differ in more than the order of their halves
        digest_of(folder, HEADS)
    assert digest_of(made / "hf-tp2", HEADS) == digest_of(original)


def test_megatrons_own_arguments_are_read(made: Path) -> None:
    facts = facts_of(made / "stacked-pp2-tp2")
    assert (facts.configuration, facts.model.num_attention_heads) == ("common.pt", 4)
    with pytest.raises(UsageError, match="--num-attention-heads"):
        facts_of(made / "core-fsdp2-tp2")


def test_wrappers_around_checkpoints_folders(made: Path, original: Path, tmp_path: Path) -> None:
    """Megatron's pointer to an iteration, and the folder that Accelerate makes inside the trainer's."""
    shutil.copytree(made / "stacked-pp2-tp2", tmp_path / "megatron" / "iter_0000001")
    (tmp_path / "megatron" / "latest_checkpointed_iteration.txt").write_text("1")
    shutil.copytree(made / "hf-fsdp4", tmp_path / "trainer" / "pytorch_model_fsdp_0")
    (tmp_path / "trainer" / "rng_state_0.pth").write_bytes(b"?")
    shutil.copy(original / "config.json", tmp_path / "trainer")
    for name in ("megatron", "trainer", "trainer/pytorch_model_fsdp_0/__2_0.distcp"):
        hints = HEADS if name.endswith(".distcp") else NO_HINTS
        assert digest_of(tmp_path / name, hints) == digest_of(original)


def test_parts_in_safetensors_alone(made: Path, original: Path, tmp_path: Path) -> None:
    """What torch's HuggingFaceStorageWriter saves of each rank, without consolidating it."""
    folder = shutil.copytree(made / "hf-safetensors", tmp_path / "parts")
    first, second = sorted(folder.iterdir())
    assert not (folder / ".metadata").exists()
    for path in (folder, first, second):
        facts = facts_of(path, HEADS)
        assert (facts.dialect, facts.variant, facts.format) == ("dcp", "flat", "dcp")
        assert digest_of(path, HEADS) == digest_of(original)
    for path, words in ((second, "says hidden|but .* says"), (first, "no part holds what is at")):
        path.rename(tmp_path / "aside")
        with pytest.raises(BadInput, match=words):
            digest_of(second if path == first else folder, HEADS)
        (tmp_path / "aside").rename(path)
    content = second.read_bytes()
    right, wrong = rb"\"saved_offsets\": [24, 0]", rb"\"saved_offsets\": [-4, 0]"
    assert right in content
    second.write_bytes(content.replace(right, wrong))
    with pytest.raises(BadInput, match="its entry in DCP_SHARDING_INFO is malformed"):
        digest_of(folder, HEADS)


# The pages of mapped files count: what is read is given back. 170 MB without that.
MEGABYTES_OF_PROCESS = 32

MEASURE = """
import sys
from pathlib import Path
from gptbridge.process.allocator import keep_freed_memory
from gptbridge.weights.conversion.convert import Conversion, convert_checkpoint
from gptbridge.weights.opening import Hints
from gptbridge.weights.configs.table import ConfigFacts

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

keep_freed_memory(False)
before = peak()
made, output = map(Path, sys.argv[1:])
hints = Hints(model=ConfigFacts({"num_attention_heads": 8}, "test"))
for case in ("large-fsdp2-tp2", "large-stacked-fsdp2-tp2"):
    for to in ("torch", "megatron", "dcp"):
        convert_checkpoint(Conversion(made / case, output / f"{case}-{to}", to, hints))
assert not {"torch", "paddle", "mindspore"} & sys.modules.keys()
print(peak() - before)
"""


@pytest.mark.timeout(300)
def test_memory_is_bounded_and_no_framework_is_needed(made: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(made), str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 1 < float(done.stdout) < MEGABYTES_OF_PROCESS
    direct = converted(made / "large", tmp_path / "direct", "torch")
    expected = (direct / "model.safetensors").read_bytes()
    for case in ("large-fsdp2-tp2", "large-stacked-fsdp2-tp2"):
        again = converted(tmp_path / f"{case}-dcp", tmp_path / f"{case}-again", "torch")
        for folder in (tmp_path / f"{case}-torch", again):
            assert (folder / "model.safetensors").read_bytes() == expected


LOAD = """
import sys
from pathlib import Path
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import GPT2Config, GPT2LMHeadModel
original, made, flat = sys.argv[1:]
expected = GPT2LMHeadModel.from_pretrained(original).state_dict()
for folder, key in ((made, "model"), (flat, None)):
    model = GPT2LMHeadModel(GPT2Config.from_pretrained(folder))
    assert not torch.equal(model.state_dict()["transformer.wte.weight"], expected["transformer.wte.weight"])
    state = model.state_dict()
    load({key: state} if key else state, checkpoint_id=folder)
    model.load_state_dict(state)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
dcp_to_torch_save(made, Path(made) / "model.pt")
saved = torch.load(Path(made) / "model.pt")
assert saved.keys() == {"model"}
assert all(torch.equal(saved["model"][name], tensor) for name, tensor in expected.items())
"""


@pytest.mark.timeout(200)
def test_torch_opens_what_is_written(original: Path, tmp_path: Path) -> None:
    """By name as a state dict of the model; a tied head is in it under both names, and once in the file."""
    made = converted(original, tmp_path / "made", "dcp")
    flat = converted(original, tmp_path / "flat", "dcp", variant="flat")
    command = [sys.executable, "-c", LOAD, str(original), str(made), str(flat)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    assert digest_of(made) == digest_of(flat) == digest_of(original)
    whole = sum(array.nbytes for array in random_weights(MODEL).values())
    assert whole < (made / "__0_0.distcp").stat().st_size < 1.2 * whole
    assert_identical(weights_of(converted(made, tmp_path / "back", "torch")), weights_of(original))


def test_what_is_written_is_the_same_in_any_folder(original: Path, tmp_path: Path) -> None:
    first, second = (converted(original, tmp_path / name, "dcp") for name in ("first", "second"))
    for name in (".metadata", "__0_0.distcp"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_two_models_are_no_model(original: Path, tmp_path: Path) -> None:
    """A model and its average, say."""
    arrays = {f"{name}.{each}": a for name in ("model", "ema") for each, a in weights_of(original).items()}
    write_dcp(tmp_path / ".metadata", entries_of(arrays))
    with pytest.raises(BadInput, match=r"holds several models: .*model\.wte\.weight and .*ema\.wte"):
        facts_of(tmp_path, HEADS)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / ".metadata").unlink(), "without their .metadata"),
        (lambda folder: (folder / "__1_0.distcp").unlink(), "__1_0.distcp: cannot be opened: No such file"),
        (lambda folder: cut(folder / "__2_0.distcp"), "__2_0.distcp: tensor 'model."),
        (lambda folder: flip(folder / "__3_0.distcp"), "is damaged: its CRC-32 differs"),
        (lambda folder: cut(folder / ".metadata"), ".metadata: its pickle"),
    ],
)
def test_damage_is_refused_by_name(
    damage: Callable[[Path], object], words: str, made: Path, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    folder = shutil.copytree(made / "core-fsdp2-tp2", tmp_path / "damaged")
    damage(folder)
    command = ("convert", folder, tmp_path / "out", "--to", "torch", "--num-attention-heads", 4)
    assert_refused(run(*command), 5, words, tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Change one bit of the numbers of one tensor."""
    with open_weights(path.with_name(".metadata")) as weights:
        numbers = weights.parts("model.embedding.word_embeddings.weight")[-1].rows(0, 1).tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(numbers)] ^= 1
    path.write_bytes(content)
