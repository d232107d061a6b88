"""What other systems call things: their names of fields, values and models, and their configuration files."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any


def _inverted(table: Mapping[str, str]) -> dict[str, str]:
    """Return each word of a row -> the row's key."""
    return {word: key for key, words in table.items() for word in words.split()}


# Ours, or what to do instead: the names of other systems. Case, - and _ do not count.
_FIELDS = {
    "schedule.max_lr=1e-4": "lr learning_rate base_lr",
    "schedule.min_lr=1e-5": "lr_end min_learning_rate end_lr",
    "schedule.warmup_rate=0.01": "warmup warmup_ratio warmup_proportion",
    "training.global_batch_size=8": "batch_size bs train_batch_size",
    "training.micro_batch_size=8": "per_device_train_batch_size local_batch_size device_batch_size",
    "training.max_steps=300": "steps num_steps train_steps total_steps train_iters max_iters",
    "training.seq_length=1024": "block_size max_seq_len max_length context_length n_ctx",
    "training.device=gpu": "device cuda gpu place",
    "training.device=ascend": "device_target npu",
    "training.epochs=1": "epochs epoch num_epochs num_train_epochs max_epochs",
    "parallel.data=1": "dp_degree",
    "parallel.tensor=1": "mp_degree tensor_parallel tensor_model_parallel_size model_parallel",
    "parallel.pipeline=1": "pp_degree pipeline_parallel pipeline_stage",
    "optimizer.clip_grad_norm=1.0": "grad_clip max_grad_norm clip_norm clip_grad",
    "precision.compute=bf16": "dtype amp bf16 use_amp precision",
    "precision.compute=fp16": "fp16 half",
    "checkpoint.interval=100": "save_steps save_interval save_checkpoint_steps",
    "evaluation.interval=100": "eval_steps eval_interval eval_freq",
    "data.path=PREFIX": "data input_dir dataset data_path dataset_dir train_data data_dir",
    "data.validation_path=PREFIX": "validation_file eval_file validation_data valid_data_path eval_dataset",
    "evaluation.global_batch_size=8": "eval_batch_size per_device_eval_batch_size",
    "evaluation.patience=5": "early_stopping_patience early_stopping",
    "checkpoint.keep_best=true": "load_best_model_at_end save_best",
    "training.max_minutes=60": "time_limit max_time exit_duration_in_mins",
    "data.tokenizer=FOLDER": "tokenizer tokenizer_path tokenizer_name",
    "model=gpt2-small": "model_name model_type",
    "model.num_layers=12": "n_layer n_layers num_hidden_layers layers",
    "model.hidden_size=768": "n_embd d_model embedding_size hidden",
    "model.num_attention_heads=12": "n_head n_heads num_heads heads",
    "generation.max_new_tokens=100": "max_dec_len max_decode_len max_tokens",
    "generation.strategy=sample": "do_sample decode_strategy",
}
_ADVICE = {
    "The command says it: gptbridge train, generate or convert": "run_mode",
    "The spec stands by itself: gptbridge train FILE.yaml": "config c spec",
    "--run FOLDER names the run's folder": "output_dir output",
    "--devices N trains on N devices of this machine": "gpus devices num_gpus nproc_per_node",
    "--resume FOLDER goes on from a checkpoint": "resume_from_checkpoint resume_from",
    "--init-from FOLDER begins with its weights": "load_checkpoint ckpt_dir model_name_or_path",
}
_TYPED = {name: f"-o {ours}" for name, ours in _inverted(_FIELDS).items()} | _inverted(_ADVICE)

# Words that mean something else to `generate` than to `train`.
_GENERATED = {"max_length": "-o generation.max_new_tokens=100"}
_AT_ZERO = {"temperature": "-o generation.strategy=greedy"}

_NUMBER = re.compile(r"\d*\.?\d+(e[+-]?\d+)?", re.IGNORECASE)

# The choice that is meant by values that are none.
_VALUES = _inverted(
    {
        "gpu": "cuda",
        "ascend": "npu",
        "fp16": "float16 half",
        "bf16": "bfloat16",
        "fp32": "float32 float",
        "gelu_erf": "gelu",
        "gelu_tanh": "gelu_new",
        "quick_gelu": "fast_gelu",
        "sample": "sampling",
        "greedy": "greedy_search",
    }
)
_OUT_OF_RANGE = {
    "generation.temperature": "generation.strategy=greedy is what temperature 0 means elsewhere",
    "generation.top_k": "0 takes all",
    "generation.top_p": "1 takes all",
    "evaluation.batches": "evaluation.interval=0 trains without evaluation",
}

_MODELS = {
    "gpt2": "gpt2-small",
    "gpt-2": "gpt2-small",
    "gpt2-117m": "gpt2-small",
    "gpt2-124m": "gpt2-small",
    "gpt2-345m": "gpt2-medium",
    "gpt2-774m": "gpt2-large",
    "gpt2-1.5b": "gpt2-xl",
    "gpt2-small-en": "paddlenlp-gpt2-small-en",
    "gpt2-medium-en": "fleetx-345m",
    "gpt2-large-en": "gpt2-large",
    "gpt2-xl-en": "gpt2-xl",
    "gpt3-1.3b-en": "fleetx-1.3b",
    "gpt3-13b-en": "paddlenlp-gpt3-13b",
    "gpt-cpm-large-cn": "cpm-large",
    "gpt-cpm-small-cn-distill": "cpm-small-distill",
    "gpt": "gpt2-small",
    "gpt3": "modelscope-gpt3-1.3b",
}


def typed_instead(name: str, value: object = None, command: str | None = None) -> str | None:
    """Return what to type instead of a field or option that another system calls `name`; None: unknown.

    A number that was given as its `value` takes the place of the example's. `command` is where it was typed.
    """
    plain = name.lstrip("-").replace("-", "_").lower()
    if plain in _AT_ZERO and str(value) in ("0", "0.0"):
        return _AT_ZERO[plain]
    typed = (_GENERATED if command == "generate" else {}).get(plain) or _TYPED.get(plain)
    field, _, example = (typed or "").partition("=")
    return f"{field}={value}" if all(_NUMBER.fullmatch(str(x)) for x in (example, value)) else typed


def value_instead(value: object, allowed: Iterable[str]) -> str:
    """Return " Did you mean X?" for a value that none of the allowed ones is, or nothing."""
    plain = str(value).lower().partition(":")[0]
    known = list(allowed)
    part = [name for name in known if name in plain]  # CosineAnnealing
    near = [_VALUES.get(plain, plain), *part, *difflib.get_close_matches(plain, known, n=1, cutoff=0.6)]
    return next((f". Did you mean {name}?" for name in near if name in known), "")


def range_hint(field: str) -> str:
    """Return what a number that `field` does not take is meant to say, or nothing."""
    return f". {_OUT_OF_RANGE[field]}" if field in _OUT_OF_RANGE else ""


def preset_instead(name: str, known: Iterable[str]) -> str | None:
    """Return the preset that is meant by `name`: of another system, by a part of its name, or the nearest."""
    names = list(known)
    if (alias := _MODELS.get(name.lower().rpartition("/")[2])) in names:
        return alias
    parts = set(name.lower().replace("_", "-").split("-"))
    whole = [preset for preset in names if parts <= set(preset.split("-"))]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return next(iter([*sorted(whole, key=len), *near]), None)


# Whose file it is, and keys that ours lack: two say it.
_SYSTEMS = (
    ("PaddleFleetX", "Global Engine Distributed Optimizer Model Data Generation Inference _base_"),
    (
        "MindFormers",
        "run_mode runner_config trainer train_dataset train_dataset_task lr_schedule auto_trans_ckpt "
        "runner_wrapper use_parallel parallel_config context callbacks load_checkpoint recompute_config "
        "training_args eval_dataset moe_config",
    ),
    ("ModelScope", "framework pipeline preprocessor megatron train dataset"),
    (
        "PaddleNLP",
        "model_name_or_path model_type input_dir output_dir max_lr min_lr max_seq_len decay_steps "
        "warmup_rate logging_freq save_steps tokenizer_name_or_path do_train per_device_train_batch_size "
        "learning_rate weight_decay max_seq_length fp16 init_args init_class",
    ),
    ("Hugging Face", "architectures n_embd n_head n_layer n_positions model_type hidden_act"),
)


# A file of the model alone has one of these.
_ALONE = {
    "Model": "PaddleFleetX",
    "model_config": "MindFormers",
    "init_class": "PaddleNLP",
    "architectures": "Hugging Face",
}
_TYPES = {"gpt": "PaddleNLP", "gpt3": "ModelScope"}  # of a model_type that is one's alone


def system_of(content: Mapping[str, Any]) -> str | None:
    """Return the name of the system whose configuration `content` is; None: nobody's that is known."""

    def score(system: tuple[str, str]) -> int:
        return len(set(system[1].split()) & content.keys())

    if own := _TYPES.get(str(content.get("model_type"))):
        return own
    best = max(_SYSTEMS, key=score)
    model = content.get("model")
    keys = content.keys() | (model.keys() if isinstance(model, Mapping) else set())
    return best[0] if score(best) >= 2 else next((_ALONE[key] for key in _ALONE if key in keys), None)


def foreign_file(content: Mapping[str, Any], path: object) -> str | None:
    """Return whose configuration `content` of `path` is and what to type; None: nobody's that is known."""
    title = system_of(content)
    if title is None:
        return None
    typed = (
        "gptbridge train --init-from FOLDER begins with the weights beside it"
        if title == "Hugging Face"
        else (f"gptbridge spec import {path} --output run.yaml makes one of it")
    )
    return (
        f"this is a configuration of {title}, not a spec: {typed}; docs/moving.md has its fields beside ours"
    )
