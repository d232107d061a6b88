"""PaddleNLP's arguments of `run_pretrain.py`, and its `model_config.json`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gptbridge_specs.imports.files import flattened, read_json_mapping
from gptbridge_specs.imports.reading import Facts, Reading
from gptbridge_specs.imports.rows import SIZES, Action, Row, System, decides, ignored, only, option, to

# Of its built-in sizes, the presets of models here.
_SIZES = {
    "gpt2-en": "gpt2-small",
    "gpt2-small-en": "paddlenlp-gpt2-small-en",
    "gpt2-medium-en": "fleetx-345m",
    "gpt2-large-en": "gpt2-large",
    "gpt2-xl-en": "gpt2-xl",
    "gpt3-1.3b-en": "fleetx-1.3b",
    "gpt3-13b-en": "paddlenlp-gpt3-13b",
    "gpt-cpm-large-cn": "cpm-large",
    "gpt-cpm-small-cn-distill": "cpm-small-distill",
}
_GELU = {"gelu": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_erf": "gelu_erf", "quick_gelu": "quick_gelu"}
_CONFIGS = ("model_config.json", "config.json")
_SWITCHES = ("use_amp", "use_recompute", "use_sharding", "check_accuracy")


def _switched(reading: Reading, name: str) -> bool:
    """Return a switch, which is off where the flag has no value."""
    if reading.given.get(name) is True:
        reading.note(f"--{name} without a value means false there: --{name} true would turn it on", name)
        return False
    return reading.flag(name)


def _combine(reading: Reading) -> None:
    on = {name: _switched(reading, name) for name in _SWITCHES}
    _model(reading)
    dropout = 0.0 if on["check_accuracy"] else None
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        reading.set(f"model.{name}", reading.value(name) if dropout is None else dropout, name)
    reading.set("training.recompute", "full" if on["use_recompute"] else "none", "use_recompute")
    reading.set("precision.compute", "fp16" if on["use_amp"] else "fp32", "use_amp")
    sharding = reading.degree("sharding_degree") if on["use_sharding"] else 1
    reading.set("parallel.sharding", sharding, "sharding_degree")
    reading.set("parallel.sharding_stage", int(sharding > 1))
    micro = reading.whole("micro_batch_size", "batch_size") or 1
    key = reading.key("micro_batch_size", "batch_size")
    total = micro * reading.degree("dp_degree") * sharding
    reading.set("training.micro_batch_size", micro, key)
    reading.set("training.global_batch_size", total, key)
    if (
        reading.value("global_batch_size") not in (None, "None")
        and reading.whole("global_batch_size") != total
    ):
        reading.refuse("global_batch_size", f"micro_batch_size={micro} x data x sharding gives {total}")
    clip = reading.number("grad_clip")
    reading.set("optimizer.clip_grad_norm", clip or None, "grad_clip")
    interval, saved = reading.whole("eval_freq", "eval_steps"), reading.whole("save_steps")
    reading.set("evaluation.interval", max(interval or 0, 0), reading.key("eval_freq", "eval_steps"))
    reading.set("checkpoint.interval", saved or reading.value("max_steps"), "save_steps")
    for name in ("max_lr", "min_lr"):
        if name not in reading.given:
            older = "1e-5" if name == "max_lr" else "5e-5"
            said = f"is left out, and {reading.defaults[name]} is its default; an older release's is {older}"
            reading.note(f"--{name} {said}", name)
    folder = Path(str(reading.value("input_dir")))
    if folder.is_dir() and len(list(folder.glob("*_idx.npz"))) > 1:
        reading.note("holds several datasets: they are joined here, and one pass each there", "input_dir")


def _model(reading: Reading) -> None:
    key = "model_name_or_path"
    name = str(reading.value(key))
    if preset := _SIZES.get(name.lower()):
        reading.preset = preset
    elif config := next((Path(name) / file for file in _CONFIGS if os.path.lexists(Path(name) / file)), None):
        inner = read_model(config, reading.facts)
        reading.problems += inner.problems
        reading.lines += inner.lines
        for field in [name for name in inner.fields if not name.startswith("training.")]:
            reading.set(field, inner.fields[field], key)
        reading.options.append(f"--init-from {name}")
    elif reading.value(key) is not None:
        reading.refuse(key, f"no folder with {' or '.join(_CONFIGS)}, and none of {', '.join(_SIZES)}")
    else:
        reading.refuse(key, "says the model, and is not given")
    if str(reading.value("model_type")) == "gpt-cn":
        reading.note("is Chinese: data.tokenizer must name the folder of its vocabulary", "model_type")


def read_model(path: Path, facts: Facts) -> Reading:
    """Return what the configuration of a model says."""
    reading = Reading(flat_model(read_json_mapping(path), path), MODEL.defaults(), facts)
    MODEL.read(reading)
    return reading


def flat_model(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the keys of a model's configuration, whose older form nests: {"init_args": [{...}]}."""
    while isinstance(inner := content.pop("init_args", None), list) and inner and isinstance(inner[0], dict):
        content = {**inner[0], **content}
    return flattened(content, path)


def _classes(reading: Reading) -> None:
    reading.set("training.seq_length", reading.fields.get("model.max_position_embeddings", 1024))
    kind = str(reading.value("init_class") or reading.value("architectures"))
    if "SequenceClassification" in kind:
        reading.set("task.name", "classification", "init_class")
        reading.set("task.num_labels", reading.value("num_labels", "num_classes") or 2)


def _kind() -> Action:
    def act(reading: Reading, key: str, value: Any) -> str:
        if "gpt" not in str(value).lower():
            reading.refuse(key, "not a GPT")
        return "of a GPT, as it is here"

    return act


MODEL = System(
    "a PaddleNLP model",
    (
        Row("vocab_size hidden_size num_attention_heads max_position_embeddings", to("model.*")),
        Row("num_hidden_layers num_layers", to("model.num_layers")),
        Row("n_embd", to("model.hidden_size")),
        Row("n_layer", to("model.num_layers")),
        Row("n_head", to("model.num_attention_heads")),
        Row("n_positions", to("model.max_position_embeddings")),
        Row("intermediate_size n_inner", to("model.ffn_hidden_size")),
        Row("hidden_act activation_function", to("model.activation", _GELU)),
        Row("hidden_dropout_prob resid_pdrop", to("model.hidden_dropout_prob")),
        Row("attention_probs_dropout_prob attn_pdrop", to("model.attention_probs_dropout_prob")),
        Row("initializer_range layernorm_epsilon", to("model.*")),
        Row("num_labels num_classes", decides("task.num_labels")),
        Row("init_class architectures model_type", _kind()),
        Row("type_vocab_size", ignored("there is no such embedding, there neither")),
        Row("{bos,eos,eol,pad}_token_id", ignored("tokens are the tokenizer's")),
        Row("normalize_before", only(True, why="the norm stands before the sublayer")),
        Row(
            "fuse_attention_qkv fuse_attention_ffn use_flash_attention paddlenlp_version dtype",
            ignored("kernels are the backend's"),
        ),
    ),
    _classes,
    fixed={"model.activation": "gelu_tanh", "model.layernorm_epsilon": 1e-5},
    required=SIZES,
)
SYSTEM = System(
    "PaddleNLP",
    (
        Row("model_type", only("gpt", "gpt2", "gpt-cn", why="another family is not to be had here")),
        Row("model_name_or_path", decides("model")),
        Row("tokenizer_name_or_path", to("data.tokenizer")),
        Row("input_dir", to("data.path")),
        Row("output_dir", option("--run {}")),
        Row("split", to("data.split"), "949,50,1"),
        Row("max_seq_len", to("training.seq_length"), 1024),
        Row("micro_batch_size", decides("training.micro_batch_size", "training.global_batch_size"), 8),
        Row("batch_size", decides("training.micro_batch_size", "training.global_batch_size")),
        Row("global_batch_size", decides("training.global_batch_size")),
        Row("weight_decay", to("optimizer.weight_decay"), 0.0),
        Row("adam_beta1", to("optimizer.beta1"), 0.9),
        Row("adam_beta2", to("optimizer.beta2"), 0.999),
        Row("adam_epsilon", to("optimizer.epsilon"), 1e-8),
        Row("grad_clip", decides("optimizer.clip_grad_norm"), 0.0),
        Row("max_lr", to("schedule.max_lr"), 1e-4),
        Row("min_lr", to("schedule.min_lr"), 1e-5),
        Row("warmup_rate", to("schedule.warmup_rate"), 0.01),
        Row("decay_steps", to("schedule.decay_steps"), 360000),
        Row("lr_decay_style", to("schedule.name", {"cosine": "cosine", "none": "constant"}), "cosine"),
        Row("max_steps", to("training.max_steps"), 500000),
        Row("save_steps", decides("checkpoint.interval"), 500),
        Row("logging_freq", to("training.log_interval"), 1),
        Row("logging_steps", to("training.log_interval")),
        Row("eval_freq", decides("evaluation.interval"), 500),
        Row("eval_steps", decides("evaluation.interval")),
        Row("eval_iters", to("evaluation.batches"), 10),
        Row("test_iters", ignored("gptbridge evaluate measures the test split")),
        Row("dp_degree", to("parallel.data"), 1),
        Row("mp_degree", to("parallel.tensor"), 1),
        Row("pp_degree", to("parallel.pipeline"), 1),
        Row("sharding_degree use_sharding", decides("parallel.sharding", "parallel.sharding_stage")),
        Row("use_recompute", decides("training.recompute")),
        Row("use_amp", decides("precision.compute")),
        Row("amp_level", ignored("master weights are always fp32")),
        Row("scale_loss", to("precision.initial_loss_scale"), 32768),
        Row("hidden_dropout_prob", decides("model.hidden_dropout_prob"), 0.1),
        Row("attention_probs_dropout_prob", decides("model.attention_probs_dropout_prob"), 0.1),
        Row("check_accuracy", decides("model.hidden_dropout_prob", "model.attention_probs_dropout_prob")),
        Row("seed", to("training.seed"), 1234),
        Row(
            "device select_devices",
            to("training.device", {"gpu": "gpu", "cpu": "cpu", "npu": "ascend"}),
        ),
        Row("enable_addto profiler_options p", ignored("kernels and tools, not numbers")),
    ),
    _combine,
    fixed={
        "model.initializer_range": 0.02,
        "data.mask_end_of_text": True,
        "optimizer.decay": "matrices",
        "training.device": "gpu",
        "schedule.warmup_steps": None,
    },
    notes=("weights of residual projections begin / sqrt(2 x layers) here, and there as all others",),
)
