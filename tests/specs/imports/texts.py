"""What the files of other systems say, in their own words."""

from __future__ import annotations

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
