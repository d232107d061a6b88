"""Files in the forms that people have: what they say of themselves decides, whatever they are called."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gptbridge.errors import BadInput
from gptbridge.weights.configs.table import ConfigFacts
from gptbridge.weights.formats import Namespace, TensorRef, Tree, open_weights, write_torch
from gptbridge.weights.opening import Hints, open_checkpoint
from tests.weights.conversion.checkpoints import (
    HEADS,
    NO_HINTS,
    arrays_in,
    assert_identical,
    converted,
    entries_of,
    facts_of,
    rewrite_torch,
    weights_of,
)

MEGATRON_FILE = "release/mp_rank_00/model_optim_rng.pt"


def assert_same(source: Path, original: Path, hints: Hints = NO_HINTS, **options: Any) -> None:
    back = converted(source, source.parent / "back", "torch", hints=hints, overwrite=True, **options)
    assert_identical(weights_of(back), weights_of(original))


def renamed(name: str, names: Mapping[str, str]) -> str:
    """`name` with each of `names` that is in it replaced."""
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def rewrap(source: Path, target: Path, top: str, names: Mapping[str, str], **beside: Tree) -> None:
    """Write the tensors of a torch file under the key `top`, renamed, with other values `beside` them."""
    arrays = {renamed(name.removeprefix("model."), names): array for name, array in arrays_in(source).items()}
    refs: dict[Any, Tree] = {name: TensorRef(f"{top}.{name}") for name in arrays}
    target.parent.mkdir(parents=True, exist_ok=True)
    tree: dict[Any, Tree] = {top: refs, **beside}
    write_torch(target, entries_of({f"{top}.{name}": x for name, x in arrays.items()}), tree)


def beside_the_model(file: Path) -> dict[Any, Tree]:
    """What a file of Megatron's holds beside its weights: args, checkpoint_version, iteration."""
    with open_weights(file) as weights:
        assert isinstance(weights.tree, dict)
        return {key: value for key, value in weights.tree.items() if key != "model"}


ENGINE = {
    "input_layernorm.": "self_attention.layernorm_qkv.layer_norm_",
    "self_attention.query_key_value.": "self_attention.layernorm_qkv.",
    "self_attention.dense.": "self_attention.proj.",
    "post_attention_layernorm.": "layernorm_mlp.layer_norm_",
    "mlp.dense_h_to_4h.": "layernorm_mlp.fc1_",
    "mlp.dense_4h_to_h.": "layernorm_mlp.fc2_",
}


@pytest.mark.parametrize(("version", "norm"), [(3, "layernorm"), (2, "norm"), (3, "norm")])
@pytest.mark.parametrize("tensor", [1, 2])
def test_transformer_engines_names_in_the_classic_model(
    version: int, norm: str, tensor: int, original: Path, tmp_path: Path
) -> None:
    source = converted(
        original, tmp_path / "m", "megatron", tensor, variant=f"version-{version}", vocab_size=64
    )
    for rank in range(tensor):
        file = source / f"release/mp_rank_{rank:02d}/model_optim_rng.pt"
        names = {**ENGINE, "final_layernorm": f"final_{norm}"}
        rewrap(file, file, "model", names, **beside_the_model(file))
    assert_same(source, original, vocab_size=61)


def megatron_deepspeed(original: Path, folder: Path, tensor: int) -> Path:
    """A run of Megatron-DeepSpeed: Megatron's names under `module`, in files of ModelScope's names."""
    source = converted(original, folder / "source", "megatron", tensor, vocab_size=64)
    run = folder / "run"
    for rank in range(tensor):
        file = source / f"release/mp_rank_{rank:02d}/model_optim_rng.pt"
        target = run / f"global_step10/mp_rank_{rank:02d}_model_states.pt"
        rewrap(file, target, "module", {}, **beside_the_model(file), ds_version="0.9")
    (run / "latest_checkpointed_iteration.txt").write_text("10")
    return run


@pytest.mark.parametrize("tensor", [1, 2])
def test_megatron_deepspeed_is_told_from_modelscope(tensor: int, original: Path, tmp_path: Path) -> None:
    run = megatron_deepspeed(original, tmp_path, tensor)
    for place in (run, run / "global_step10"):
        assert_same(place, original, vocab_size=61)
        facts = facts_of(place)
        assert (facts.dialect, facts.model.layernorm_epsilon) == ("megatron", 1e-5)
    with pytest.raises(BadInput, match="another system's"):
        facts_of(run, Hints("modelscope"))


def test_the_same_names_without_a_word_of_megatron_are_modelscopes(original: Path, tmp_path: Path) -> None:
    run = megatron_deepspeed(original, tmp_path, 1)
    file = run / "global_step10/mp_rank_00_model_states.pt"
    rewrap(file, file, "module", {"module.": ""})
    facts = facts_of(run, HEADS)
    assert (facts.dialect, facts.model.layernorm_epsilon) == ("modelscope", 1e-12)


@pytest.mark.parametrize("pipeline", [1, 2])
def test_the_distributed_optimizers_folders_are_passed_over(
    pipeline: int, original: Path, tmp_path: Path
) -> None:
    source = converted(original, tmp_path / "m", "megatron", 2, pipeline, vocab_size=64)
    for folder in [*source.glob("release/mp_rank_*")]:
        (folder / "model_optim_rng.pt").rename(folder / "model_rng.pt")
        for data in range(2):
            part = folder.with_name(f"{folder.name}_{data:03d}")
            part.mkdir()
            (part / "optim.pt").write_bytes(b"")
    assert_same(source, original, vocab_size=61)
    (source / "release/mp_rank_00_007").mkdir()
    with pytest.raises(BadInput, match=r"mp_rank_00_007: holds no model_optim_rng\.pt"):
        facts_of(source)


OF_2019 = {"language_model.": "", "embedding.": "", "encoder": "transformer", "self_attention": "attention"}


@pytest.mark.parametrize("top", ["module", "model"])
def test_megatrons_names_of_2019(top: str, original: Path, tmp_path: Path) -> None:
    """CPM-1 among them: two ranks in a folder that is only a number, in DeepSpeed's files."""
    source = converted(original, tmp_path / "m", "megatron", 2, variant="version-0", vocab_size=64)
    run = tmp_path / "cpm"
    for rank in range(2):
        file = source / f"release/mp_rank_{rank:02d}/model_optim_rng.pt"
        rewrap(file, run / f"80000/mp_rank_{rank:02d}_model_states.pt", top, OF_2019)
    pointer = run / "latest_checkpointed_iteration.txt"
    pointer.write_text("80000")
    for place in (run, run / "80000"):
        assert_same(place, original, HEADS, vocab_size=61)
    pointer.write_text("70000")
    with pytest.raises(BadInput, match="points to iter_0070000 or 70000 or global_step70000"):
        facts_of(run)


@pytest.mark.parametrize("prefix", ["", "dist_model.", "dist_model.module.", "model.dist_model."])
@pytest.mark.parametrize("variant", ["large", "base"])
def test_what_modelscopes_trainer_saves(variant: str, prefix: str, original: Path, tmp_path: Path) -> None:
    hints = Hints(model=ConfigFacts({"activation": "gelu_erf"}, "test"))
    source = converted(original, tmp_path / "m", "modelscope", variant=variant, hints=hints)
    place = "pytorch_model.bin" if variant == "base" else "model/mp_rank_00_model_states.pt"
    names = {"module.": "", "language_model.": f"{prefix}language_model."}
    meta: dict[Any, Tree] = {"epoch": 1, "iter": 10}
    rewrap(source / place, source / "epoch_1.pth", "state_dict", names, meta=meta)
    (source / place).unlink()
    assert_same(source, original)
    assert facts_of(source).dialect == "modelscope"


@pytest.mark.parametrize("prefix", ["", "transformer.", "module.transformer."])
@pytest.mark.parametrize(
    ("top", "beside"),
    [("model", "optimizer"), ("state_dict", "optimizer"), ("model_state_dict", "optimizer_state_dict")],
)
def test_what_peoples_own_loops_save(
    top: str, beside: str, prefix: str, original: Path, tmp_path: Path
) -> None:
    """nanoGPT's names below `model` are the same: its linear weights are (out, in)."""
    arrays = {f"{top}.{prefix}{name}": array for name, array in weights_of(original).items()}
    moment, loss = f"{beside}.state.0.exp_avg", np.array([1.5], np.float32)
    model: dict[Any, Tree] = {name.removeprefix(f"{top}."): TensorRef(name) for name in arrays}
    moments: Tree = {"state": {0: {"exp_avg": TensorRef(moment)}}}
    tree: dict[Any, Tree] = {top: model, beside: moments, "epoch": 3, "loss": TensorRef("loss")}
    source = tmp_path / "loop"
    shutil.copytree(original, source)
    (source / "model.safetensors").unlink()
    others = {moment: loss, "loss": loss}
    write_torch(source / "best.pt", entries_of({**arrays, **others}), tree)
    assert_same(source, original)
    facts = facts_of(source)
    assert (facts.dialect, facts.variant.split(" ")[2].split(".")[0]) == ("torch", top)
    if top != "model":
        return
    averaged = {name.replace("model.", "ema.", 1): array for name, array in arrays.items()}
    tree["ema"] = {name.removeprefix("ema."): TensorRef(name) for name in averaged}
    write_torch(source / "best.pt", entries_of({**arrays, **averaged, **others}), tree)
    with pytest.raises(BadInput, match=r"holds several models: model\.\S*wte\.weight and ema\."):
        facts_of(source)


@pytest.mark.parametrize("tied", [True, False])
def test_dialogpts_head(tied: bool, original: Path, tmp_path: Path) -> None:
    weights = {f"transformer.{name}": array for name, array in weights_of(original).items()}
    head = weights["transformer.wte.weight"] + (0 if tied else 1)
    shutil.copytree(original, tmp_path / "dialogpt")
    config = tmp_path / "dialogpt" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": tied}))
    file = tmp_path / "dialogpt" / "model.safetensors"
    save_file({**weights, "lm_head.decoder.weight": head}, file)
    facts = facts_of(tmp_path / "dialogpt")
    assert facts.model.tie_word_embeddings == tied
    back = weights_of(converted(tmp_path / "dialogpt", tmp_path / "back", "torch"))
    assert ("lm_head.weight" in back) == (not tied)
    if not tied:
        assert np.array_equal(back["lm_head.weight"], head)
    save_file({**weights, "lm_head.decoder.weight": head, "lm_head.weight": head}, file)
    with pytest.raises(BadInput, match=r"lm_head\.\S*weight is left over"):
        facts_of(tmp_path / "dialogpt")


@pytest.mark.parametrize("dialect", ["paddle", "fleetx", "torch"])
def test_bfloat16_that_numpy_calls_uint16(dialect: str, original: Path, tmp_path: Path) -> None:
    """PaddleNLP's unified checkpoints: safetensors written from NumPy's arrays, in parts with an index."""
    source = converted(original, tmp_path / "m", dialect, dtype="bfloat16")
    written = next(file for file in source.iterdir() if file.suffix in (".pdparams", ".safetensors"))
    arrays = arrays_in(written)
    assert {array.dtype.name for array in arrays.values()} == {"uint16"}
    written.unlink()
    names = [*arrays]
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: arrays[name] for name in held}, source / part, {"format": "np"})
    weight_map = {name: part for part, held in parts.items() for name in held}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if dialect == "torch":  # any other system's uint16 are numbers
        with pytest.raises(BadInput, match="is uint16"):
            converted(source, tmp_path / "back", "torch")
        return
    assert facts_of(source).dtypes.keys() == {"bfloat16"}
    plain = converted(original, tmp_path / "plain", "torch", dtype="bfloat16")
    back = converted(source, tmp_path / "back", "torch")
    assert (back / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def args_of(tree: Mapping[Any, Tree]) -> dict[str, Tree]:
    args = tree["args"]
    assert isinstance(args, Namespace)
    return args


ROTARY: dict[str, dict[str, Tree]] = {
    "rope": {"position_embedding_type": "rope"},
    "alibi of DeepSpeed's fork": {"position_embedding_type": "PositionEmbeddingType(3)"},
    "rotary of 2023": {"use_rotary_position_embeddings": True},
}


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("variant", ["version-3", "core"])
def test_other_positions_are_refused_by_name(name: str, variant: str, original: Path, tmp_path: Path) -> None:
    source = converted(original, tmp_path / "m", "megatron", variant=variant, vocab_size=64)
    file = source / MEGATRON_FILE
    beside, said = beside_the_model(file), ROTARY[name]
    beside["args"] = Namespace({**args_of(beside), **said})
    rewrap(file, file, "model", {"position_embeddings": "nowhere"}, **beside)
    (key, value), *_ = said.items()
    with pytest.raises(BadInput, match=rf"model_optim_rng\.pt, args: {key} is {re.escape(str(value))}"):
        facts_of(source)


def test_words_of_megatrons_forks_for_the_same(original: Path, tmp_path: Path) -> None:
    source = converted(original, tmp_path / "m", "megatron", vocab_size=64)
    words: dict[str, Tree] = {
        "num_experts": [1],
        "normalization": "layernorm",
        "position_embedding_type": "PositionEmbeddingType(2)",
    }
    file = source / MEGATRON_FILE
    rewrite_torch(file, lambda tree: tree.update(args=Namespace({**args_of(tree), **words})))
    assert_same(source, original, vocab_size=61)
    rewrite_torch(file, lambda tree: tree.update(args=Namespace({**args_of(tree), "num_experts": [8]})))
    with pytest.raises(BadInput, match=r"num_experts is \[8\]"):
        facts_of(source)


@pytest.mark.parametrize("name", ["model.layers.0.q_proj.weight", "transformer.ln_f.weight"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "bloom"])
def test_other_families_are_refused_by_name(family: str, name: str, tmp_path: Path) -> None:
    save_file({name: np.ones(4, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(BadInput, match=rf"config\.json: model_type is {family}"):
        facts_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(BadInput, match=r"no tensor has a name|is missing"):
        facts_of(tmp_path)


def test_a_head_that_is_announced_and_not_there_is_told(original: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(original, tmp_path / "untied")
    config = folder / "config.json"
    content = json.loads(config.read_text())
    for tied, told in ((True, False), (False, True)):
        config.write_text(json.dumps({**content, "tie_word_embeddings": tied}))
        with open_checkpoint(folder) as opened:
            assert any("the embedding is taken" in warning for warning in opened.warnings) == told
            assert opened.model.tie_word_embeddings
    source = converted(original, tmp_path / "m", "megatron", vocab_size=64)
    untied: dict[str, Tree] = {"untie_embeddings_and_output_weights": True}
    file = source / MEGATRON_FILE
    rewrite_torch(file, lambda tree: tree.update(args=Namespace({**args_of(tree), **untied})))
    with open_checkpoint(source) as opened:
        assert any("the embedding is taken" in warning for warning in opened.warnings)


@pytest.mark.parametrize("bare", [True, False])
def test_safetensors_that_mindspore_merged(bare: bool, original: Path, tmp_path: Path) -> None:
    source = converted(original, tmp_path / "m", "mindspore")
    arrays = arrays_in(source / "gpt2.ckpt")
    (source / "gpt2.ckpt").unlink()
    names = [*arrays]
    parts = {"part0.safetensors": names[::2], "part1.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: arrays[name] for name in held}, source / part, {"format": "ms"})
    save_file({"global_step": np.array([7], np.int32)}, source / "hyper_param.safetensors")
    found = {name: part for part, held in parts.items() for name in held}
    index = source / "param_name_map.json"
    index.write_text(json.dumps(found if bare else {"metadata": {"total_size": 1}, "weight_map": found}))
    for place in (source, index):
        assert_same(place, original)
    assert facts_of(source).dialect == "mindspore"
    index.write_text(json.dumps({**found, names[0]: "part1.safetensors"}))
    with pytest.raises(BadInput, match="though the index"):
        facts_of(source)
