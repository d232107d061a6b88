"""Configurations of other systems, in the words of their own files, become specs that lose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptbridge_specs import RunSpec, SpecError, load_run
from gptbridge_specs.fields import describe_fields
from gptbridge_specs.imports import Facts, Imported, import_file, modelscope
from gptbridge_specs.imports.files import flat
from gptbridge_specs.imports.reading import Reading

FLEETX_BASE = """
Global: {device: gpu, seed: 1024, global_batch_size: , local_batch_size: 1, micro_batch_size: 1}
Engine:
  max_steps: 500000
  num_train_epochs: 1
  accumulate_steps:
  logging_freq: 1
  eval_freq: 500
  eval_iters: 10
  mix_precision:
    use_pure_fp16: True
    scale_loss: 32768.0
    custom_black_list: ["reduce_sum", "c_softmax_with_cross_entropy", "elementwise_div"]
    custom_white_list: ["lookup_table", "lookup_table_v2"]
  save_load: {save_steps: 1000, output_dir: ./output, ckpt_dir: }
Model: {module: "GPTModule", name: "GPT", fused_linear: False, fuse_attn_qkv: True}
Data:
  Train:
    dataset: {name: GPTDataset, input_dir: ./data/, split: [949, 50, 1], max_seq_len: 1024}
    sampler: {name: DistributedBatchSampler, shuffle: False, drop_last: True}
    loader: {num_workers: 1, return_list: False, collate_fn: gpt_collate_fn}
  Eval:
    dataset: {name: GPTDataset, input_dir: ./data/, split: [949, 50, 1], max_seq_len: 1024}
Optimizer:
  name: FusedAdamW
  weight_decay: 0.01
  beta1: 0.9
  beta2: 0.999
  epsilon: 1.0e-8
  lr: {name: CosineAnnealingWithWarmupDecay, decay_steps: 360000, warmup_rate: 0.01,
       max_lr: 5.0e-5, min_lr: 1.0e-5}
  grad_clip: {name: "ClipGradByGlobalNorm", clip_norm: 1.0}
  tensor_fusion: False
Profiler: {enable: False, scheduler: [1, 5]}
Distributed: {dp_degree: 1, mp_degree: 1, pp_degree: 1, sharding: {sharding_degree: 1, sharding_stage: 1}}
"""
MODEL_345M = "Model: {vocab_size: 50304, hidden_size: 1024, num_layers: 24, num_attention_heads: 16,"
RECOMPUTED = " use_recompute: True,"
MODEL_1B = "Model: {vocab_size: 50304, hidden_size: 2048, num_layers: 24, num_attention_heads: 16,"
MODEL_7B = "Model: {vocab_size: 50304, hidden_size: 4096, num_layers: 32, num_attention_heads: 32,"
MODEL_175B = "Model: {vocab_size: 51200, hidden_size: 12288, num_layers: 96, num_attention_heads: 96,"
REST = " ffn_hidden_size: , max_position_embeddings: 1024, type_vocab_size: 16, virtual_pp_degree: 1}\n"
LOCAL_8 = "_base_: ./base.yaml\nGlobal: {local_batch_size: 8, micro_batch_size: 8}\n"
FLEETX = {
    "fleetx-345m-single-card": LOCAL_8 + MODEL_345M + REST
    + "Optimizer: {lr: {max_lr: 1e-5, min_lr: 1e-5}}\n",
    "fleetx-1.3b-single-card": LOCAL_8 + MODEL_1B + RECOMPUTED + REST,
    "fleetx-1.3b-dp8": LOCAL_8 + MODEL_1B + RECOMPUTED + REST + "Distributed: {dp_degree: 8}\n",
    "fleetx-6.7b-sharding16": LOCAL_8 + MODEL_7B + RECOMPUTED + REST
    + "Distributed: {dp_degree: , sharding: {sharding_degree: 16, sharding_stage: 2}}\n",
    "fleetx-175b-mp8-pp16": "_base_: base.yaml\nGlobal: {local_batch_size: 1536, micro_batch_size: 1}\n"
    + MODEL_175B + RECOMPUTED + REST + "Distributed: {dp_degree: , mp_degree: 8, pp_degree: 16}\n",
}  # fmt: skip
MINDFORMERS = """
seed: 0
run_mode: 'train'
output_dir: './output'
load_checkpoint: ""
resume_training: False
context: {mode: 0, device_target: "Ascend", device_id: 0, max_call_depth: 10000}
runner_config: {epochs: 3, batch_size: 4, sink_mode: True, sink_size: 2}
runner_wrapper:
  type: MFTrainOneStepCell
  scale_sense: {type: DynamicLossScaleUpdateCell, loss_scale_value: 4294967296, scale_factor: 2,
                scale_window: 1000}
  use_clip_grad: True
use_parallel: False
parallel: {parallel_mode: 0, gradients_mean: True, full_batch: True, enable_parallel_optimizer: False}
parallel_config: {data_parallel: 1, model_parallel: 1, pipeline_stage: 1, micro_batch_num: 1,
                  vocab_emb_dp: True}
micro_batch_interleave_num: 1
moe_config: {expert_num: 1, capacity_factor: 1.05}
recompute_config: {recompute: False, mp_comm_recompute: True}
auto_tune: False
trainer: {type: CausalLanguageModelingTrainer, model_name: 'gpt2'}
do_eval: False
train_dataset: &train_dataset
  data_loader: {type: MindDataset, dataset_dir: "./wiki", shuffle: True}
  input_columns: ["input_ids", "attention_mask"]
  batch_size: 8
  repeat: 1
train_dataset_task: {type: CausalLanguageModelDataset, dataset_config: *train_dataset}
model:
  model_config:
    type: GPT2Config
    seq_length: 1024
    vocab_size: 50257
    hidden_size: 768
    num_layers: 12
    num_heads: 12
    expand_ratio: 4
    hidden_act: "gelu"
    compute_dtype: "float16"
    eos_token_id: 50256
    top_k: 5
    top_p: 1
    do_sample: True
  arch: {type: GPT2LMHeadModel}
lr_schedule: {type: polynomial, learning_rate: 0.0001, lr_end: 0.00001, warmup_steps: 0, total_steps: -1}
layer_scale: False
layer_decay: 0.65
optimizer: {type: FusedAdamWeightDecay, beta1: 0.9, beta2: 0.95, eps: 0.00000001, weight_decay: 0.1}
callbacks:
  - type: MFLossMonitor
  - {type: CheckpointMointor, prefix: "gpt2", save_checkpoint_steps: 500, integrated_save: True}
metric: {type: PerplexityMetric}
"""
PADDLENLP = """
set -x
unset CUDA_VISIBLE_DEVICES
task="gpt"  # the name of the log
PYTHONPATH=../../ python -u -m paddle.distributed.launch --gpus "0" --log_dir "log/$task" run_pretrain.py \\
    --model_type "gpt" --model_name_or_path gpt2-en --input_dir "./data" --output_dir "output/$task"\\
    --weight_decay 0.01 --grad_clip 1.0 --max_steps 500000 --save_steps 100000 --decay_steps 320000\\
    --device gpu --eval_freq 500 --warmup_rate 0.01 --scale_loss 32768 --global_batch_size 4\\
    --micro_batch_size 4 --max_lr 0.0001 --min_lr 0.00001 --logging_freq 1
"""
MODELSCOPE = {
    "framework": "pytorch",
    "task": "text-generation",
    "model": {"type": "gpt3", "checkpoint_model_parallel_size": 1},
    "pipeline": {"type": "gpt3-generation"},
    "preprocessor": {"type": "text-gen-jieba-tokenizer", "sequence_length": 129},
    "train": {
        "work_dir": "./gpt3_poetry",
        "max_epochs": 10,
        "optimizer": {"type": "AdamW", "lr": 3e-4},
        "dataloader": {"batch_size_per_gpu": 16, "workers_per_gpu": 1},
        "hooks": [{"type": "TextLoggerHook", "interval": 1}, {"type": "MegatronHook"}],
    },
    "evaluation": {"metrics": "ppl"},
    "megatron": {"world_size": 1, "tensor_model_parallel_size": 1},
}
GPT3 = {"vocab_size": 25600, "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32}
MEGATRON = """
#!/bin/bash
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
NNODES=1
WORLD_SIZE=$(($GPUS_PER_NODE*$NNODES))   # used by nobody
DATA_PATH=my-gpt2_text_document
MODEL_ARGS=(
    --num-layers 24
    --hidden-size 1024   # 345M
    --num-attention-heads 16
    --seq-length 1024 --max-position-embeddings 1024
)
torchrun --nproc_per_node $GPUS_PER_NODE --nnodes ${NNODES} --master_addr $MASTER_ADDR pretrain_gpt.py \\
    ${MODEL_ARGS[@]} \\
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 \\
    --micro-batch-size 4 --global-batch-size 16 --train-iters 500000 --lr-decay-iters 320000 \\
    --data-path $DATA_PATH --vocab-size 50257 --split 949, 50, 1 \\
    --lr 0.00015 --lr-decay-style cosine --min-lr 1.0e-5 --weight-decay 1e-2 --clip-grad 1.0 \\
    --lr-warmup-fraction .01 --log-interval 100 --save-interval 10000 --eval-iters 10 --fp16
"""


def changed(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


class Files:
    """Writes configurations and imports them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fleetx(self, top: str, base: str = FLEETX_BASE, **facts: int) -> Imported:
        (self.folder / "base.yaml").write_text(base)
        return self.read("run.yaml", top, **facts)

    def modelscope(
        self, *pairs: tuple[str, Any], model: dict[str, Any] | None = None, **facts: int
    ) -> Imported:
        content = json.loads(json.dumps(MODELSCOPE))
        for place, value in pairs:
            *outer, last = place.split(".")
            section = content
            for name in outer:
                section = section.setdefault(name, {})
            section[last] = value
            if value is None:
                del section[last]
        if model is not None:
            (self.folder / "config.json").write_text(json.dumps(model))
        return self.read("configuration.json", json.dumps(content), **facts)

    def read(self, name: str, text: str, *overrides: str, **facts: int) -> Imported:
        (self.folder / name).write_text(text)
        return import_file(self.folder / name, overrides, Facts(**facts))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.chdir(tmp_path)
    return Files(tmp_path)


def refusal(read: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(SpecError) as refused:
        read(*arguments, **keywords)
    return str(refused.value)


def value(spec: RunSpec, name: str) -> Any:
    found: Any = spec
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def differing(imported: Imported, preset: str) -> set[str]:
    """Return the fields in which a run differs from a preset, sizes that are left out taken as they count."""
    spec, other = imported.spec, load_run(preset)
    names = {row.name for row in describe_fields(RunSpec)} - {"data.path", "model.ffn_hidden_size"}
    found = {name for name in names if value(spec, name) != value(other, name)}
    assert spec.model.ffn_size == other.model.ffn_size
    if spec.micro_batch_size == other.micro_batch_size:
        found.discard("training.micro_batch_size")
    return found


@pytest.mark.parametrize("preset", FLEETX)
def test_fleetx_recipes_are_the_presets(files: Files, preset: str) -> None:
    imported = files.fleetx(FLEETX[preset])
    assert differing(imported, preset) == {"training.device"}  # a preset takes what there is
    assert imported.options == ("--run ./output",)
    wrong = files.fleetx(FLEETX[preset].replace("num_layers: ", "num_layers: 8"))
    assert "model.num_layers" in differing(wrong, preset)


_MF = {"training.device", "training.max_steps", "training.epochs",
       "checkpoint.keep", "generation.top_k", "generation.strategy"}  # fmt: skip


def mindformers_13b(text: str = MINDFORMERS) -> str:
    return changed(
        text,
        ("hidden_size: 768", "hidden_size: 5120"), ("num_layers: 12", "num_layers: 40"),
        ("num_heads: 12", "num_heads: 40"), ("seq_length: 1024", "seq_length: 2048"),
        ('"gelu"', '"fast_gelu"'), ("batch_size: 4,", "batch_size: 2,"),
        ("recompute: False", "recompute: True"),
        ("use_parallel: False", "use_parallel: True"), ("parallel_mode: 0", "parallel_mode: 1"),
        ("data_parallel: 1, model_parallel: 1", "data_parallel: 4, model_parallel: 8"),
        ("warmup_steps: 0", "warmup_steps: 2000"),
    )  # fmt: skip


def mindformers_52b() -> str:
    return changed(
        mindformers_13b(),
        ("hidden_size: 5120", "hidden_size: 8192"), ("num_layers: 40", "num_layers: 64"),
        ("num_heads: 40", "num_heads: 32"), ("seq_length: 2048", "seq_length: 1024"),
        ("data_parallel: 4, model_parallel: 8, pipeline_stage: 1, micro_batch_num: 1",
         "data_parallel: 8, model_parallel: 1, pipeline_stage: 16, micro_batch_num: 64"),
        ("batch_size: 2,", "batch_size: 1,"),
    )  # fmt: skip


def mindformers_lora() -> str:
    pet = "    pet_config: {pet_type: lora, lora_rank: 64, lora_alpha: 128, lora_dropout: 0.1}\n  arch: "
    return changed(
        MINDFORMERS, ("  arch: ", pet), ("GPT2LMHeadModel", "GPT2WithLora"),
        ("learning_rate: 0.0001, lr_end: 0.00001", "learning_rate: 0.001, lr_end: 0.0001"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "text"),
    [
        ("mindformers-gpt2-small", MINDFORMERS),
        ("mindformers-gpt2-small-lora", mindformers_lora()),
        ("mindformers-gpt2-13b", mindformers_13b()),
        ("mindformers-gpt2-52b", mindformers_52b()),
    ],
)
def test_mindformers_recipes_are_the_presets(files: Files, preset: str, text: str) -> None:
    imported = files.read("run.yaml", text)
    assert differing(imported, preset) == _MF
    assert imported.spec.training.epochs == 3
    gelus = ('"gelu"', '"fast_gelu"') if '"gelu"' in text else ('"fast_gelu"', '"gelu"')
    assert "model.activation" in differing(files.read("run.yaml", changed(text, gelus)), preset)


def test_paddlenlp_s_command_is_the_preset(files: Files) -> None:
    imported = files.read("run.sh", PADDLENLP)
    assert differing(imported, "paddlenlp-gpt2-en") == {"training.device"}
    assert imported.options == ("--run output/gpt",)


@pytest.mark.parametrize(
    ("preset", "pairs", "warmup"),
    [
        ("modelscope-gpt3-1.3b-poetry", [("preprocessor.sequence_length", 128)], 100),
        ("modelscope-gpt3-1.3b-dureader",
         [("train.optimizer.lr", 1e-4), ("preprocessor.sequence_length", 512),
          ("train.dataloader.batch_size_per_gpu", 4)], 200),
    ],
)  # fmt: skip
def test_modelscope_s_recipes_are_the_presets(
    files: Files, preset: str, pairs: list[Any], warmup: int
) -> None:
    files.modelscope(*pairs, model=GPT3)
    overrides = ["schedule.name=noam", f"schedule.warmup_steps={warmup}"]
    imported = import_file(files.folder / "configuration.json", overrides)
    # a line end after the question is its guide's own, and in no configuration
    assert differing(imported, preset) - {"task.records.source"} == {
        "training.epochs", "training.max_steps", "checkpoint.interval", "evaluation.interval"
    }  # fmt: skip


def test_megatron_s_script(files: Files) -> None:
    imported = files.read("pretrain.sh", MEGATRON)
    spec = imported.spec
    assert (spec.parallel.data, spec.parallel.tensor, spec.parallel.pipeline) == (2, 2, 2)
    assert spec.model.vocab_size == 50432  # the next multiple of 128 x 2
    assert spec.data.split == (949, 50, 1)
    assert (spec.schedule.max_lr, spec.schedule.warmup_rate, spec.schedule.decay_steps) == (
        1.5e-4,
        0.01,
        320000,
    )
    assert spec.precision.initial_loss_scale == 2**32
    assert spec.evaluation.interval == 1000  # its default: the script leaves it out
    larger = changed(MEGATRON, ("--global-batch-size 16", "--global-batch-size 32"))
    four = files.read("pretrain.sh", larger, "GPUS_PER_NODE=16")
    assert four.spec.parallel.data == 4


SYSTEMS = {
    "mindformers": ("run.yaml", MINDFORMERS),
    "paddlenlp": ("run.sh", PADDLENLP),
    "megatron": ("run.sh", MEGATRON),
}


def test_every_key_has_a_line(files: Files) -> None:
    """Of a YAML: whatever it holds is a field, without effect for a reason, or not set."""
    imported = files.read("run.yaml", MINDFORMERS)
    keys = {key for key, _ in flat(yaml.safe_load(MINDFORMERS))}
    lines = [line for line in imported.lines if line.kind not in ("default", "note")]
    assert sorted(line.key for line in lines) == sorted(keys)
    assert all(line.text for line in lines)
    fields = {line.key: line.text for line in lines if line.kind == "field"}
    assert fields["optimizer.beta2"] == "optimizer.beta2 = 0.95"
    assert fields["runner_config.batch_size"].startswith("training.global_batch_size = 4")


@pytest.mark.parametrize(
    ("system", "old", "new", "said"),
    [
        ("mindformers", "do_eval: False", "do_eval: False\ndo_evall: 1", "Did you mean do_eval?"),
        ("mindformers", "beta2: 0.95", "betta2: 0.95", "Did you mean optimizer.beta2?"),
        ("mindformers", "expert_num: 1", "expert_num: 2", "mixtures of experts"),
        ("mindformers", "parallel_mode: 0", "parallel_mode: 2", "states no layout"),
        ("mindformers", "scale_factor: 2", "scale_factor: 4", "doubled and halved"),
        ("mindformers", "layer_scale: False", "layer_scale: True", "one learning rate"),
        ("mindformers", '"gelu"', '"relu"', "not one of gelu, fast_gelu"),
        ("mindformers", "batch_size: 4,", "batch_size: four,", "batch_size = four: is not a number"),
        ("mindformers", "epochs: 3", "epochs: -3", "runner_config.epochs: training.epochs"),
        ("paddlenlp", "--grad_clip 1.0", "--grad_clipp 1.0", "Did you mean grad_clip?"),
        ("paddlenlp", "--min_lr 0.00001", "--min_lr 0.001", "min_lr=0.001 is above max_lr=0.0001"),
        ("paddlenlp", "--global_batch_size 4", "--global_batch_size 8", "x data x sharding gives 4"),
        ("paddlenlp", "gpt2-en", "gpt5-en", "no folder with model_config.json"),
        ("paddlenlp", "--device gpu", "--device xpu", "not one of gpu, cpu, npu"),
        ("megatron", "--fp16", "--fp16 --swiglu", "another architecture"),
        ("megatron", "--fp16", "--fp16 --rampup-batch-size 16 16 5859", "the same size in every step"),
        ("megatron", "--fp16", "--fp16 --num-layer 3", "Did you mean num-layers?"),
        ("megatron", "--fp16", "--fp16 --bf16", "--fp16 says otherwise"),
        ("megatron", "--fp16", "--fp16 --fp16", "--fp16 stands twice"),
        ("megatron", "--fp16", "--fp16 --seed $(date +%s)", "only a shell could tell"),
        ("megatron", "--fp16", "--fp16 --seed $SEED", "is not set in the script; give it with -o SEED=VALUE"),
        ("megatron", "--fp16", "--fp16 --model-parallel-size 2", "an old name: --tensor-model-parallel-size"),
        ("megatron", "--vocab-size 50257 ", "", "give --vocab-size N"),
        ("megatron", "--train-iters 500000", "--train-iters 5 --train-samples 80", "one of --train-iters"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(files: Files, system: str, old: str, new: str, said: str) -> None:
    name, text = SYSTEMS[system]
    files.read(name, text)
    assert said in refusal(files.read, name, changed(text, (old, new)))


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


@pytest.mark.parametrize(
    ("layout", "devices", "total", "parallel"),
    [
        ("False {parallel_mode: 1} {data_parallel: 4, model_parallel: 2}", None, 4, (1, 1, 1, 1)),
        ("True {parallel_mode: 0} {data_parallel: 4, model_parallel: 2}", 8, 32, (8, 1, 1, 1)),
        ("True {parallel_mode: 1, full_batch: True} {data_parallel: 4, model_parallel: 2}",
         None, 16, (4, 1, 2, 1)),
        ("True {parallel_mode: 1, full_batch: False} {data_parallel: 4, model_parallel: 2}",
         None, 32, (4, 1, 2, 1)),
        ("True {parallel_mode: 1, full_batch: True, enable_parallel_optimizer: True} {data_parallel: 4}",
         None, 16, (1, 4, 1, 1)),
        ("True {parallel_mode: 1, full_batch: True} "
         "{data_parallel: 2, pipeline_stage: 2, micro_batch_num: 8}",
         None, 64, (2, 1, 1, 2)),
    ],
)  # fmt: skip
def test_mindformers_batches(
    files: Files, layout: str, devices: int | None, total: int, parallel: tuple[int, ...]
) -> None:
    use, mode, config = layout.replace(" {", "|{").split("|")
    text = changed(
        MINDFORMERS,
        ("use_parallel: False", f"use_parallel: {use}"),
        ("{parallel_mode: 0, gradients_mean: True, full_batch: True, enable_parallel_optimizer: False}",
         mode),
        ("{data_parallel: 1, model_parallel: 1, pipeline_stage: 1, micro_batch_num: 1,\n"
         "                  vocab_emb_dp: True}", config),
    )  # fmt: skip
    spec = files.read("run.yaml", text, **({"devices": devices} if devices else {})).spec
    assert spec.training.global_batch_size == total
    own = spec.parallel
    assert (own.data, own.sharding, own.tensor, own.pipeline) == parallel
    if devices:
        assert "give --devices N" in refusal(files.read, "run.yaml", text)


def test_mindformers_accumulation_and_interleaving(files: Files) -> None:
    text = changed(MINDFORMERS, ("epochs: 3", "epochs: 3, gradient_accumulation_steps: 4"))
    spec = files.read("run.yaml", text).spec
    assert (spec.training.global_batch_size, spec.training.micro_batch_size) == (16, 4)


@pytest.mark.parametrize(
    ("words", "field", "expected"),
    [
        ("type: cosine, lr_end: 0.0, warmup_ratio: 0.03", "schedule.warmup_rate", 0.03),
        ("type: CosineWithWarmUpLR, warmup_steps: 7", "schedule.name", "cosine"),
        ("type: linear, total_steps: 70", "schedule.decay_steps", 70),
        ("type: linear", "schedule.min_lr", 0.0),
        ("type: linear", "schedule.name", "linear"),
        (
            "type: linear, warmup_steps: 7",
            "schedule.name",
            "polynomial",
        ),  # it falls from the warm-up's end on
        ("type: polynomial", "schedule.min_lr", 1e-7),
        ("type: polynomial, power: 2.0", "schedule.power", 2.0),
        ("type: polynomial, warmup_epochs: 2", "schedule.warmup_steps", 50),
    ],
)
def test_mindformers_schedules(files: Files, words: str, field: str, expected: Any) -> None:
    old = "{type: polynomial, learning_rate: 0.0001, lr_end: 0.00001, warmup_steps: 0, total_steps: -1}"
    text = changed(MINDFORMERS, (old, f"{{learning_rate: 0.0001, {words}}}"))
    assert value(files.read("run.yaml", text, samples=100).spec, field) == expected


@pytest.mark.parametrize(
    ("pattern", "targets"),
    [("'.*dense1|.*dense3'", ("q", "v")), ("'.*dense*'", ("q", "k", "v")), ("'.*mapping'", ("fc",)),
     ("'.*projection'", ("out", "proj"))],
)  # fmt: skip
def test_mindformers_lora_targets(files: Files, pattern: str, targets: tuple[str, ...]) -> None:
    text = mindformers_lora().replace("lora_dropout: 0.1", f"lora_dropout: 0.1, target_modules: {pattern}")
    lora = files.read("run.yaml", text).spec.task.lora
    assert lora is not None
    assert lora.targets == targets
    assert "matches none" in refusal(files.read, "run.yaml", text.replace(pattern, "'.*nothing'"))


def test_mindformers_may_evaluate_by_epochs(files: Files) -> None:
    text = changed(
        MINDFORMERS, ("do_eval: False", "do_eval: True\neval_step_interval: -1\neval_epoch_interval: 5")
    )
    assert files.read("run.yaml", text, samples=100).spec.evaluation.interval == 5 * 25
    assert "give --samples N" in refusal(files.read, "run.yaml", text)
    steps = changed(text, ("eval_step_interval: -1", "eval_step_interval: 30"))
    assert files.read("run.yaml", steps).spec.evaluation.interval == 30


def test_mindformers_scales_and_clips(files: Files) -> None:
    fixed = changed(MINDFORMERS, ("type: DynamicLossScaleUpdateCell", "type: FixedLossScaleUpdateCell"))
    assert files.read("run.yaml", fixed).spec.precision.loss_scale == 4294967296
    plain = changed(MINDFORMERS, ("use_clip_grad: True", "use_clip_grad: False"))
    assert files.read("run.yaml", plain).spec.optimizer.clip_grad_norm is None


@pytest.mark.parametrize(
    ("flag", "field", "on", "alone"),
    [("use_amp", "precision.compute", "fp16", "fp32"),
     ("use_recompute", "training.recompute", "full", "none"),
     ("check_accuracy", "model.hidden_dropout_prob", 0.0, 0.1)],
)  # fmt: skip
def test_paddlenlp_switches(files: Files, flag: str, field: str, on: Any, alone: Any) -> None:
    """A switch without a value is off: so its parser has it."""
    for words, expected in (
        (f"--{flag} true", on),
        (f"--{flag} y", on),
        (f"--{flag} no", alone),
        (f"--{flag}", alone),
    ):
        imported = files.read("run.sh", PADDLENLP.replace("--logging_freq 1", f"--logging_freq 1 {words}"))
        assert value(imported.spec, field) == expected
    assert any("without a value means false" in line.text for line in imported.lines)


def test_paddlenlp_s_arguments_in_json(files: Files) -> None:
    words = {"model_type": "gpt", "model_name_or_path": "gpt2-en", "input_dir": "data", "use_amp": True,
             "use_recompute": False, "max_lr": 3e-4, "output_dir": "out"}  # fmt: skip
    spec = files.read("args.json", json.dumps(words)).spec
    assert (spec.precision.compute, spec.training.recompute, spec.schedule.max_lr) == ("fp16", "none", 3e-4)


def test_paddlenlp_shards_only_where_it_is_switched_on(files: Files) -> None:
    text = changed(PADDLENLP, ("--logging_freq 1", "--sharding_degree 4"), ("--global_batch_size 4", ""))
    assert files.read("run.sh", text).spec.parallel.world_size == 1
    spec = files.read("run.sh", text.replace("degree 4", "degree 4 --use_sharding true")).spec
    assert (spec.parallel.sharding, spec.parallel.sharding_stage, spec.training.global_batch_size) == (
        4,
        1,
        16,
    )


def test_paddlenlp_s_own_defaults_are_written(files: Files) -> None:
    """They are not ours: decay and clipping are off, and AdamW's second beta is 0.999."""
    imported = files.read("args.txt", "--model_type gpt\n--model_name_or_path gpt2-en  # the small one\n")
    spec = imported.spec
    assert (spec.optimizer.weight_decay, spec.optimizer.clip_grad_norm, spec.optimizer.beta2) == (
        0.0,
        None,
        0.999,
    )
    assert (spec.schedule.max_lr, spec.training.global_batch_size, spec.training.seq_length) == (
        1e-4,
        8,
        1024,
    )
    assert any("an older release's is 1e-5" in line.text for line in imported.lines)


def test_paddlenlp_s_model_of_its_own(files: Files) -> None:
    inner = {"vocab_size": 67, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
             "intermediate_size": 192, "max_position_embeddings": 40, "type_vocab_size": 16,
             "hidden_act": "gelu"}  # fmt: skip
    nested = json.dumps(
        {"init_args": [{**inner, "init_class": "GPTModel"}], "init_class": "GPTForPretraining"}
    )
    spec = files.read("model_config.json", nested).spec
    assert (spec.model.num_layers, spec.model.ffn_size, spec.training.seq_length) == (3, 192, 40)
    text = PADDLENLP.replace("gpt2-en", str(files.folder)).replace("--device", "--max_seq_len 40 --device")
    imported = files.read("run.sh", text)
    assert imported.spec.model.model_copy(update={"hidden_dropout_prob": 0.1}) == spec.model
    assert f"--init-from {files.folder}" in imported.options
    newer = json.dumps(
        {**inner, "model_type": "gpt", "architectures": ["GPTForPretraining"], "eos_token_id": 7}
    )
    assert files.read("config.json", newer).spec.model == spec.model
    theirs = newer.replace('"gpt"', '"gpt2"')
    assert "gptbridge train --init-from FOLDER" in refusal(files.read, "config.json", theirs)
    bad = nested.replace('"gelu"', '"relu"')
    assert "not one of gelu" in refusal(files.read, "model_config.json", bad)


@pytest.mark.parametrize(
    ("words", "field", "expected"),
    [
        ("--use-distributed-optimizer", "parallel.sharding", 2),
        ("--recompute-activations", "training.recompute", "core_attn"),
        ("--recompute-granularity selective", "training.recompute", "core_attn"),
        ("--recompute-granularity full --recompute-method uniform", "training.recompute", "full"),
        ("--checkpoint-activations", "training.recompute", "full"),
        ("--no-bias-gelu-fusion", "model.activation", "gelu_erf"),
        ("--untie-embeddings-and-output-weights", "model.tie_word_embeddings", False),
        ("--make-vocab-size-divisible-by 64", "model.vocab_size", 50304),
        ("--eod-mask-loss", "data.mask_end_of_text", True),
        ("--loss-scale 1024", "precision.loss_scale", 1024.0),
        ("--exit-interval 100", "training.stop_after_steps", 100),
        ("--exit-duration-in-mins 230", "training.max_minutes", 230),
        ("--valid-data-path held", "data.validation_path", "held"),
        ("--sequence-parallel", "parallel.sequence", True),
        ("--seed=7", "training.seed", 7),
    ],
)
def test_megatron_values(files: Files, words: str, field: str, expected: Any) -> None:
    assert value(files.read("a.sh", MEGATRON).spec, field) != expected
    assert value(files.read("a.sh", MEGATRON.replace("--fp16", f"--fp16 {words}")).spec, field) == expected


@pytest.mark.parametrize(
    ("words", "weights"), [("0.7 a 0.3 b", (0.7, 0.3)), ("a b c", (1, 1, 1)), ("2 a", (2,))]
)
def test_megatron_blends(files: Files, words: str, weights: tuple[float, ...]) -> None:
    spec = files.read("a.sh", MEGATRON.replace("$DATA_PATH", words)).spec
    assert tuple(part.weight for part in spec.data.mixture) == weights
    assert spec.data.paths == tuple("abc"[: len(weights)])
    assert "before each prefix" in refusal(files.read, "a.sh", MEGATRON.replace("$DATA_PATH", "0.7 a b"))


def test_megatron_s_own_gelu_is_the_tanh(files: Files) -> None:
    text = MEGATRON.replace("--fp16", "--fp16 --no-bias-gelu-fusion --openai-gelu")
    assert files.read("a.sh", text).spec.model.activation == "gelu_tanh"


def test_megatron_counts_samples(files: Files) -> None:
    text = changed(
        MEGATRON, ("--train-iters 500000", "--train-samples 1600"),
        ("--lr-decay-iters 320000", "--lr-decay-samples 800"),
        ("--lr-warmup-fraction .01", "--lr-warmup-samples 160"), ("cosine", "linear"),
    )  # fmt: skip
    spec = files.read("a.sh", text).spec
    assert (spec.training.max_steps, spec.schedule.decay_steps, spec.schedule.warmup_steps) == (100, 50, 10)
    assert (spec.schedule.name, spec.schedule.power) == ("polynomial", 1.0)


def test_modelscope_s_classes_read_different_keys(files: Files) -> None:
    model = {
        **GPT3,
        "hidden_dropout": 0.2,
        "hidden_dropout_prob": 0.3,
        "init_method_std": 0.01,
        "ffn_hidden_size": 64,
    }
    large = files.modelscope(model=model).spec.model
    assert (large.hidden_dropout_prob, large.initializer_range, large.ffn_size) == (0.2, 0.01, 64)
    assert large.activation == "gelu_tanh"
    base = files.modelscope(("megatron", None), model=model).spec.model
    assert (base.hidden_dropout_prob, base.initializer_range, base.ffn_size) == (0.3, 0.02, 8192)
    assert base.activation == "gelu_erf"
    exact = files.modelscope(model={**model, "bias_gelu_fusion": False}).spec.model
    assert exact.activation == "gelu_erf"


def test_modelscope_layouts_lengths_and_hooks(files: Files) -> None:
    hooks = [
        {"type": "CheckpointHook", "interval": 2},
        {"type": "EvaluationHook", "interval": 5, "by_epoch": False},
    ]
    spec = files.modelscope(
        ("megatron", {"world_size": 8, "tensor_model_parallel_size": 2}),
        ("train.hooks", hooks),
        model=GPT3,
        samples=640,
    ).spec
    assert (spec.parallel.data, spec.parallel.tensor, spec.training.global_batch_size) == (4, 2, 64)
    assert (spec.checkpoint.interval, spec.evaluation.interval) == (20, 5)
    counted = files.modelscope(("train.train_iters_per_epoch", 7), model=GPT3).spec
    assert counted.training.max_steps == 70


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (("train.lr_scheduler", {"type": "LambdaLR"}), "schedule.name=noam"),
        (("train.hooks", [{"type": "MyHook"}]), "no such hook"),
        (("train.hooks", [{"type": "CheckpointHook"}]), "give --samples N"),
        (("megatron", {"world_size": 3, "tensor_model_parallel_size": 2}), "no multiple of"),
        (("train.optimizer.lrr", 1), "Did you mean train.optimizer.lr?"),
        (("task", "fill-mask"), "another task"),
        (("train.optimizer.betas", 0.9), "two numbers"),
    ],
)
def test_what_modelscope_says_and_cannot_be(files: Files, pair: tuple[str, Any], said: str) -> None:
    assert said in refusal(files.modelscope, pair, model=GPT3)


def test_modelscope_s_fields_of_a_record() -> None:
    """Of the reading alone: what trains on records checks the templates."""
    words = {"preprocessor.src_txt": "text1", "preprocessor.tgt_txt": "tgt_txt"}
    reading = Reading(words, modelscope.SYSTEM.defaults(), Facts())
    modelscope.SYSTEM.read(reading)
    assert reading.fields["task.records.source"] == "{text1}"
    assert "task.records.target" not in reading.fields


def test_a_lambda_is_answered(files: Files) -> None:
    lambda_lr = ("train.lr_scheduler", {"type": "LambdaLR", "options": {"by_epoch": False}})
    assert "give -o schedule.name=noam" in refusal(files.modelscope, lambda_lr, model=GPT3)
    words = ["schedule.name=noam", "schedule.warmup_steps=9"]
    spec = import_file(files.folder / "configuration.json", words).spec
    assert (spec.schedule.name, spec.schedule.warmup_steps) == ("noam", 9)


@pytest.mark.parametrize(
    ("name", "text", "left_out", "field"),
    [
        ("run.yaml", MINDFORMERS, "learning_rate: 0.0001, ", "schedule.max_lr"),
        ("a.sh", MEGATRON, "--lr 0.00015 ", "schedule.max_lr"),
        ("a.sh", MEGATRON, "--num-layers 24", "model.num_layers"),
        ("a.sh", MEGATRON, "--seq-length 1024 ", "training.seq_length"),
    ],
)
def test_no_default_of_ours_steps_in(files: Files, name: str, text: str, left_out: str, field: str) -> None:
    """What a run stands on must be said by the configuration, or by whoever imports it."""
    short = changed(text, (left_out, ""))
    assert f"nothing in it says {field}: give -o {field}=VALUE" in refusal(files.read, name, short)
    assert value(files.read(name, short, f"{field}=2").spec, field) == 2  # layers for two stages


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


def test_modelscope_needs_its_model(files: Files) -> None:
    assert "there is none" in refusal(files.modelscope)
    (files.folder / "configuration.json").write_text('{\n "framework": "pytorch",  # torch\n "task": 1}')
    assert "configuration.json:2: character" in refusal(import_file, files.folder / "configuration.json")


@pytest.mark.parametrize("name", ["a.yaml", "a.json", "a.sh", "a.txt"])
@pytest.mark.parametrize(
    "text", ["", "a: 1", "{}", "[1]", "\x00", "--", "$(rm -rf .) --lr 1", "{" * 9999, "--lr ${lr}"]
)
def test_nonsense_is_one_line(files: Files, name: str, text: str) -> None:
    said = refusal(files.read, name, text)
    assert said.startswith(str(files.folder / name))


def test_what_grows_without_end_is_refused(files: Files) -> None:
    bomb = "A0=x\n" + "".join(f'A{n}="$A{n - 1}$A{n - 1}$A{n - 1}$A{n - 1}"\n' for n in range(1, 19))
    assert "more than 1 MB" in refusal(files.read, "a.sh", f"{bomb}python pretrain_gpt.py --lr $A18\n")
    assert "is not set" in refusal(files.read, "a.sh", "A=$B\nB=$A\npython pretrain_gpt.py --lr $A\n")
    files.read("open.sh", MEGATRON + '\necho "' + "\nx" * 100_000)
    many = json.dumps({"framework": 1, "pipeline": 2, "model": 3, **{f"k{n}": n for n in range(20_000)}})
    assert "no such key" in refusal(files.read, "configuration.json", many)


def test_a_key_that_stands_twice_is_refused(files: Files) -> None:
    twice = json.dumps(MODELSCOPE).replace('"task":', '"task": "text-generation", "task":')
    assert "the key 'task' stands twice" in refusal(files.read, "configuration.json", twice)
    dotted = json.dumps({**MODELSCOPE, "pipeline.type": "gpt3-generation"})
    assert "the key 'pipeline.type' stands twice" in refusal(files.read, "configuration.json", dotted)


def test_overrides_set_fields_and_keys(files: Files) -> None:
    imported = files.read(
        "run.yaml", MINDFORMERS, "training.max_steps=5", "runner_config.batch_size=6", "training.epochs=null"
    )
    assert imported.spec.training.global_batch_size == 6
    assert (imported.spec.training.max_steps, imported.spec.training.epochs) == (5, None)
    assert "unknown key" in refusal(files.read, "run.yaml", MINDFORMERS, "training.max_step=5")


def test_what_is_written_is_read_back(files: Files) -> None:
    for name, text in (("run.sh", PADDLENLP), ("run.yaml", MINDFORMERS), ("m.sh", MEGATRON)):
        imported = files.read(name, text)
        (files.folder / "spec.yaml").write_text(imported.yaml())
        assert load_run(str(files.folder / "spec.yaml")) == imported.spec
