"""Configurations of FleetX, in the words of its own files, become specs that lose nothing."""

from __future__ import annotations

import pytest
import yaml

from gptbridge_specs.imports import import_file
from tests.specs.imports.reading import Files, differing, refusal
from tests.specs.imports.texts import FLEETX, FLEETX_BASE, LOCAL_8, MODEL_345M, REST, changed


@pytest.mark.parametrize("preset", FLEETX)
def test_fleetx_recipes_are_the_presets(files: Files, preset: str) -> None:
    imported = files.fleetx(FLEETX[preset])
    assert differing(imported, preset) == {"training.device"}  # a preset takes what there is
    assert imported.options == ("--run ./output",)
    wrong = files.fleetx(FLEETX[preset].replace("num_layers: ", "num_layers: 8"))
    assert "model.num_layers" in differing(wrong, preset)


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ("Globl: {seed: 1}", "Globl.seed = 1: PaddleFleetX has no such key. Did you mean Global.seed?"),
        ("Global: {device: xpu}", "not one of gpu, cpu, npu"),
        ("Global: {global_batch_size: 16}", "local_batch_size=1 x data x sharding = 1 gives 1"),
        ("Engine: {accumulate_steps: 4}", "local // micro batch size is 1"),
        ("Model: {num_experts: 8}", "mixtures of experts"),
        ("Model: {no_recompute_layers: [1, 2]}", "every layer is computed again, or none"),
        ("Distributed: {sharding: {sharding_offload: True}}", "stays on its device"),
        ("Optimizer: {lr: {max_lr: 1e-5, min_lr: 5e-5}}", "min_lr=5e-05 is above max_lr=1e-05"),
        ("Optimizer: {lr: {use_increments: False}}", "would stay 0"),
        ("Optimizer: {grad_clip: {name: ClipGradByValue}}", "by the global norm"),
        ("Data: {Eval: {dataset: {max_seq_len: 512}}}", "differs from Data.Train.dataset.max_seq_len = 1024"),
        ("Compress: {Quantization: {enable: True, weight_bits: 8}}", "compression is not to be had"),
        ("Prune: {ratio: 0.5}", "compression is not to be had"),
        ("Engine: {run_mode: epoch}", "give --samples N"),
        ("Tuning: {enable: True}", "layouts are not searched"),
    ],
)
def test_what_fleetx_says_and_cannot_be(files: Files, top: str, said: str) -> None:
    text = LOCAL_8.replace("8", "1") + MODEL_345M + REST
    section = top.partition(":")[0]
    whole = {**yaml.safe_load(text)}
    for name, inner in yaml.safe_load(top).items():
        whole[name] = {**whole.get(section, {}), **inner}
    assert said in refusal(files.fleetx, yaml.safe_dump(whole))


def test_a_base_is_found_beside_the_file_and_nowhere_else(files: Files) -> None:
    inner = files.folder / "inner"
    inner.mkdir()
    (inner / "run.yaml").write_text("_base_: ../base.yaml\n")
    (files.folder / "base.yaml").write_text(FLEETX_BASE)
    assert "lies outside" in refusal(import_file, inner / "run.yaml")
    assert "in a circle" in refusal(files.fleetx, "_base_: run.yaml\n")
    for number in range(12):
        (files.folder / f"{number}.yaml").write_text(f"_base_: {number + 1}.yaml\nGlobal: {{}}\n")
    assert "more than 8 files" in refusal(import_file, files.folder / "0.yaml")
    assert "no such file" in refusal(files.fleetx, "_base_: nothing.yaml\n")


def test_a_map_may_leave_its_base_out(files: Files) -> None:
    top = LOCAL_8 + MODEL_345M + REST
    assert files.fleetx(top).spec.optimizer.clip_grad_norm == 1.0
    alone = top + "Optimizer: {_inherited_: False, name: AdamW, lr: {max_lr: 1e-4}}\n"
    spec = files.fleetx(alone).spec
    assert spec.optimizer.clip_grad_norm is None
    assert (spec.schedule.max_lr, spec.schedule.min_lr) == (1e-4, 1e-5)


def test_fleetx_batches(files: Files) -> None:
    """Global is local x data x sharding; what is not set follows."""
    top = (
        "_base_: base.yaml\n"
        + MODEL_345M
        + REST
        + "Global: {global_batch_size: %s, local_batch_size: %s, micro_batch_size: 2}\n"
    )
    layout = "Distributed: {dp_degree: 2, sharding: {sharding_degree: 2, sharding_stage: 2}}\n"
    for whole, local in (("16", "4"), ("16", ""), ("", "4")):
        spec = files.fleetx(top % (whole, local) + layout).spec
        assert (spec.training.global_batch_size, spec.training.micro_batch_size) == (16, 2)
        assert (spec.parallel.data, spec.parallel.sharding, spec.parallel.sharding_stage) == (2, 2, 2)
    free = top % ("", "4") + "Distributed: {dp_degree: , mp_degree: 2, pp_degree: 2}\n"
    assert files.fleetx(free, devices=16).spec.training.global_batch_size == 16
    alone = files.fleetx(free)
    assert alone.spec.parallel.data == 1
    assert any("Distributed.dp_degree is not set" in line.text for line in alone.lines)


def test_fleetx_of_2022_s_first_form(files: Files) -> None:
    text = """
Global: {device: gpu, seed: 1024}
Engine: {max_steps: 10, mix_precision: {use_pure_fp16: True, scale_loss: 32768.0},
         save_load: {save_steps: -1}}
Data:
  batch_size: {global_batch_size: 8, local_batch_size: 8, micro_batch_size: 4}
  dataset: {input_dir: ./data, split: '949,50,1', max_seq_len: 1024}
Model: {vocab_size: 50304, hidden_size: 64, num_layers: 2, num_attention_heads: 4,
        max_position_embeddings: 1024}
Distributed: {dp_degree: 1}
Optimizer: {adam_beta1: 0.8, adam_beta2: 0.9, adam_epsilon: 1.0e-7, lr: {max_lr: 5e-5}, grad_clip: 0.5}
Eval: {eval_path: None, cloze_eval: False}
"""
    spec = files.read("configs_345m_single_card.yaml", text).spec
    assert (spec.optimizer.beta1, spec.optimizer.epsilon, spec.optimizer.clip_grad_norm) == (0.8, 1e-7, 0.5)
    assert (spec.training.micro_batch_size, spec.checkpoint.interval, spec.data.mask_end_of_text) == (
        4,
        10,
        True,
    )


def test_fleetx_s_engine_within_global(files: Files) -> None:
    """As its examples of 2023 have it."""
    engine = yaml.safe_load(FLEETX_BASE)
    top = yaml.safe_load(LOCAL_8 + MODEL_345M + REST)
    one = files.fleetx(yaml.safe_dump(top), yaml.safe_dump(engine))
    engine["Global"] |= engine.pop("Engine")
    other = files.fleetx(yaml.safe_dump(top), yaml.safe_dump(engine))
    assert other.spec == one.spec
    assert "Global.max_steps" in {line.key for line in other.lines}
    engine["Global"]["max_steps"] = 7
    assert files.fleetx(yaml.safe_dump(top), yaml.safe_dump(engine)).spec.training.max_steps == 7


def test_fleetx_finetuning_counts_epochs(files: Files) -> None:
    top = """
_base_: base.yaml
Global: {local_batch_size: 32, micro_batch_size: 32}
Engine: {run_mode: epoch, num_train_epochs: 3, max_steps: -1, eval_freq: 1, eval_iters: -1,
         save_load: {save_epoch: 2}}
Model: {module: GPTFinetuneModule, num_classes: 2, pretrained: ./ckpt, vocab_size: 50304, hidden_size: 64,
        num_layers: 2, num_attention_heads: 4, max_position_embeddings: 1024}
Data:
  Train: {dataset: {_inherited_: False, name: SST2, root: ./sst2, split: train, max_length: 128}}
  Eval: {dataset: {_inherited_: False, name: SST2, root: ./sst2, split: dev, max_length: 128}}
Optimizer:
  epsilon: 1e-6
  lr: {_inherited_: False, name: LinearDecayWithWarmup, warmup: 0.1, learning_rate: 2e-5}
"""
    imported = files.fleetx(top, samples=67349)
    spec = imported.spec
    assert (spec.task.name, spec.task.num_labels, spec.data.path) == ("classification", 2, "sst2")
    assert spec.training.epochs == 3
    assert (spec.evaluation.interval, spec.checkpoint.interval) == (67349 // 32, 2 * (67349 // 32))
    assert (spec.schedule.name, spec.schedule.warmup_rate, spec.schedule.min_lr) == ("linear", 0.1, 0.0)
    assert "--init-from ./ckpt" in imported.options
    whole = files.fleetx(
        top.replace("warmup: 0.1", "warmup: 10, epochs: 3, step_each_epoch: 100"), samples=6400
    ).spec
    assert (whole.schedule.warmup_steps, whole.schedule.decay_steps) == (10, 300)


@pytest.mark.parametrize(
    ("words", "compute", "masks"),
    [
        ("use_pure_fp16: True", "fp16", True),
        ("use_pure_fp16: False", "fp32", True),
        ("enable: True", "fp16", False),
        ("enable: True, dtype: bfloat16, level: O2", "bf16", False),
        ("enable: False, dtype: float16", "fp32", False),
    ],
)
def test_fleetx_precision(files: Files, words: str, compute: str, masks: bool) -> None:
    base = changed(FLEETX_BASE, ("use_pure_fp16: True", words.replace(", ", "\n    ")))
    spec = files.fleetx(LOCAL_8 + MODEL_345M + REST, base).spec
    assert (spec.precision.compute, spec.data.mask_end_of_text) == (compute, masks)


@pytest.mark.parametrize(
    ("words", "level"),
    [("use_recompute: False", "none"), ("use_recompute: True", "full"),
     ("use_recompute: True, recompute_granularity: full_attn", "full_attn"),
     ("use_recompute: True, recompute_granularity: core_attn", "core_attn"),
     ("use_recompute: False, recompute_granularity: core_attn", "none")],
)  # fmt: skip
def test_fleetx_recompute(files: Files, words: str, level: str) -> None:
    assert files.fleetx(LOCAL_8 + MODEL_345M + words + "," + REST).spec.training.recompute == level


def test_fleetx_pads_its_vocabulary(files: Files) -> None:
    text = LOCAL_8 + MODEL_345M.replace("50304", "50257, vocab_size_divisible_unit: 128") + REST
    assert files.fleetx(text).spec.model.vocab_size == 50304
    assert files.fleetx(text + "Distributed: {mp_degree: 8}\n").spec.model.vocab_size == 51200


def test_fleetx_reads_the_first_dataset_of_a_folder(files: Files) -> None:
    (files.folder / "data").mkdir()
    for name in ("b", "a"):
        (files.folder / "data" / f"{name}_idx.npz").touch()
    assert files.fleetx(LOCAL_8 + MODEL_345M + REST).spec.data.path == "data/a"


def test_fleetx_must_say_its_sizes(files: Files) -> None:
    said = refusal(files.fleetx, LOCAL_8)
    assert [line.split("says ")[1].split(":")[0] for line in said.splitlines()] == [
        f"model.{name}"
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_attention_heads",
            "max_position_embeddings",
        )
    ]
