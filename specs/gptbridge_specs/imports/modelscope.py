"""ModelScope's configuration.json and the model's config.json beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gptbridge_specs.imports.files import flattened, read_json_mapping
from gptbridge_specs.imports.reading import Reading
from gptbridge_specs.imports.rows import Action, Row, System, decides, ignored, only, option, refused, to

MODEL = "config.json"  # beside it; its keys are called `config.json.hidden_size`
_ALWAYS = 10**9  # steps that no run reaches
_BATCH = ("training.global_batch_size", "training.micro_batch_size")
_EPOCHS = "by_epoch counts epochs"


def beside(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a configuration.json, with those of the model's config.json beside it."""
    model = path.parent / MODEL
    alone = "framework" not in content
    inner = content if alone else read_json_mapping(model) if os.path.lexists(model) else {}
    own = {} if alone else flattened(content, path)
    return {**own, **{f"{MODEL}.{key}": value for key, value in flattened(inner, model).items()}}


def _combine(reading: Reading) -> None:
    megatron = any(key.startswith("megatron.") for key in reading.given)
    _model(reading, megatron)
    world, tensor = (
        reading.degree("megatron.world_size"),
        reading.degree("megatron.tensor_model_parallel_size"),
    )
    if world % tensor:
        reading.refuse("megatron.world_size", f"no multiple of tensor_model_parallel_size={tensor}")
    data = max(world // tensor, 1)
    reading.set("parallel.tensor", tensor, "megatron.tensor_model_parallel_size")
    reading.set("parallel.data", data, "megatron.world_size")
    key = "train.dataloader.batch_size_per_gpu"
    if reading.value(key) is None and "training.global_batch_size" not in reading.answered:
        reading.refuse(key, "is not given: give it, or -o training.global_batch_size=N")
    batch = reading.degree(key)
    reading.set("training.micro_batch_size", batch, "train.dataloader.batch_size_per_gpu")
    reading.set("training.global_batch_size", batch * data, "train.dataloader.batch_size_per_gpu")
    _length(reading, batch * data)
    _optimizer(reading)
    length = reading.whole("preprocessor.sequence_length") or 128
    reading.set("training.seq_length", max(length - 1, 1), "preprocessor.sequence_length")
    reading.note(f"tokens are the first {length - 1} of {length}: the last one is only a label",
                 "preprocessor.sequence_length")  # fmt: skip
    if str(reading.value("preprocessor.type")) == "text-gen-tokenizer":
        reading.note("its loss counts padding; here padding is left out", "preprocessor.type")


def _model(reading: Reading, megatron: bool) -> None:
    """Take what the model's class reads: that of 1.3B and up (a section megatron), or of base and large."""
    if not any(key.startswith(f"{MODEL}.") for key in reading.given):
        reading.refuse(MODEL, "the model's sizes are in the file of this name beside it, and there is none")
    names = {
        "hidden_dropout_prob": "hidden_dropout" if megatron else "hidden_dropout_prob",
        "attention_probs_dropout_prob": "attention_dropout" if megatron else "attention_probs_dropout_prob",
        "initializer_range": "init_method_std" if megatron else "initializer_range",
    }
    defaults = {"initializer_range": 0.02}
    for ours, theirs in names.items():
        value = reading.value(f"{MODEL}.{theirs}")
        reading.set(f"model.{ours}", defaults.get(ours, 0.1) if value is None else value, f"{MODEL}.{theirs}")
    width = reading.value(f"{MODEL}.ffn_hidden_size") if megatron else None
    reading.set("model.ffn_hidden_size", width, f"{MODEL}.ffn_hidden_size")
    fused = reading.value(f"{MODEL}.bias_gelu_fusion")
    tanh = megatron and (fused is None or reading.flag(f"{MODEL}.bias_gelu_fusion"))
    reading.set("model.activation", "gelu_tanh" if tanh else "gelu_erf", f"{MODEL}.bias_gelu_fusion")
    kind = "1.3B and up" if megatron else "base and large"
    reading.note(f"the class of {kind} reads {', '.join(names.values())}; of others it takes no notice")
    half, brain = reading.flag(f"{MODEL}.fp16"), reading.flag(f"{MODEL}.bf16")
    reading.set("precision.compute", "fp16" if half else "bf16" if brain else "fp32", f"{MODEL}.fp16")
    heads, hidden = reading.degree(f"{MODEL}.num_attention_heads"), reading.whole(f"{MODEL}.hidden_size") or 0
    channels = reading.whole(f"{MODEL}.kv_channels")
    if channels is not None and channels * heads != hidden:
        reading.refuse(
            f"{MODEL}.kv_channels",
            f"hidden_size / heads is {hidden / heads:g}, and no other width is to be had",
        )


def _length(reading: Reading, batch: int) -> None:
    epochs, each = reading.number("train.max_epochs"), reading.whole("train.train_iters_per_epoch")
    if epochs is not None and each:
        reading.set("training.max_steps", int(epochs * each), "train.train_iters_per_epoch")
    elif epochs is not None:
        reading.set("training.epochs", epochs, "train.max_epochs")
    intervals = {"CheckpointHook": "checkpoint.interval", "EvaluationHook": "evaluation.interval",
                 "TextLoggerHook": "training.log_interval"}  # fmt: skip
    reading.set("checkpoint.interval", _ALWAYS)
    reading.set("evaluation.interval", 0)
    hooks = [
        key.removesuffix(".type")
        for key in reading.given
        if key.startswith("train.hooks.") and key.endswith(".type")
    ]
    for hook in hooks:
        field = intervals.get(str(reading.value(f"{hook}.type")))
        every = reading.whole(f"{hook}.interval") or 1
        if field is None:
            continue
        by_epoch = f"{hook}.by_epoch"
        in_epochs = reading.flag(by_epoch) if by_epoch in reading.given else field != "training.log_interval"
        if in_epochs:
            samples = (each and each * batch) or reading.ask("samples", by_epoch, _EPOCHS)
            every *= max((samples or 1) // batch, 1)
        reading.set(field, every, f"{hook}.interval")


def _optimizer(reading: Reading) -> None:
    betas = reading.value("train.optimizer.betas")
    if betas is not None and (not isinstance(betas, list) or len(betas) != 2):
        reading.refuse("train.optimizer.betas", "two numbers")
        betas = None
    for name, value in zip(("beta1", "beta2"), betas or (0.9, 0.999), strict=True):
        reading.set(f"optimizer.{name}", value, "train.optimizer.betas")
    reading.set("schedule.name", "constant", "train.lr_scheduler.type")
    if reading.value("train.lr_scheduler.type") is None:
        reading.set("schedule.warmup_steps", 0)


def _template(name: str, usual: str) -> Action:
    """Take the name of a record's field, where it is another than usual, for a template of it."""

    def act(reading: Reading, key: str, value: Any) -> str:
        if value != usual:
            reading.set(name, f"{{{value}}}", key)
        return "as it is here" if value == usual else ""

    return act


def _scheduler() -> Action:
    def act(reading: Reading, key: str, value: Any) -> str:
        if str(value) != "ConstantLR" and "schedule.name" not in reading.answered:
            why = "a Python function or class says the learning rate: give"
            reading.refuse(
                key, f"{why} -o schedule.name=noam -o schedule.warmup_steps=N, or another schedule"
            )
        return ""

    return act


SYSTEM = System(
    "ModelScope",
    (
        Row("framework", only("pytorch", why="of another framework")),
        Row("task", only("text-generation", why="another task")),
        Row("pipeline.type", only("text-generation", "gpt3-generation", why="another model")),
        Row("model.type", only("gpt3", why="another model")),
        Row("model.{checkpoint_model_parallel_size,strict}", ignored("read by nobody there either")),
        Row(
            "preprocessor.type",
            only("text-gen-jieba-tokenizer", "text-gen-tokenizer", why="another model's"),
        ),
        Row("preprocessor.sequence_length", decides("training.seq_length"), 128),
        Row("preprocessor.{src_txt,first_sequence}", _template("task.records.source", "src_txt")),
        Row("preprocessor.tgt_txt", _template("task.records.target", "tgt_txt")),
        Row("preprocessor.mode preprocessor.{train,val}.*", ignored("training is what a spec does")),
        Row("train.work_dir", option("--run {}")),
        Row("train.{max_epochs,train_iters_per_epoch}", decides("training.epochs", "training.max_steps")),
        Row("train.dataloader.batch_size_per_gpu", decides(*_BATCH)),
        Row("train.dataloader.{workers_per_gpu,shuffle,drop_last}", ignored("batches are the core's")),
        Row("train.optimizer.type", to("optimizer.name", {"adamw": "adamw"}), "AdamW"),
        Row("train.optimizer.lr", to("schedule.max_lr")),
        Row("train.optimizer.weight_decay", to("optimizer.weight_decay"), 0.01),
        Row("train.optimizer.betas", decides("optimizer.beta1", "optimizer.beta2")),
        Row("train.optimizer.eps", to("optimizer.epsilon"), 1e-8),
        Row("train.optimizer.options.*", ignored("clipping is off there, and so it is here")),
        Row("train.lr_scheduler.type", _scheduler()),
        Row("train.lr_scheduler.lr_lambda", refused("a Python function is not in JSON: schedule.name=noam")),
        Row("train.lr_scheduler.options.by_epoch", only(False, why="the learning rate is one of the step")),
        Row("train.lr_scheduler.options.warmup.*", refused("-o schedule.warmup_steps=N says it")),
        Row(
            "train.hooks.*.type",
            only(
                "CheckpointHook",
                "EvaluationHook",
                "TextLoggerHook",
                "TensorboardHook",
                "MegatronHook",
                "IterTimerHook",
                "BestCkptSaverHook",
                "LrSchedulerHook",
                "OptimizerHook",
                why="no such hook here",
            ),
        ),
        Row("train.hooks.*.{interval,by_epoch}", decides("checkpoint.interval", "evaluation.interval")),
        Row("train.hooks.*", ignored("of a hook; the core saves, measures and logs")),
        Row("train.checkpoint.*", ignored("checkpoint says when and how many")),
        Row("train.logging.*", ignored("training.log_interval says how often")),
        Row("evaluation.*", ignored("gptbridge evaluate measures")),
        Row("dataset.*", ignored("data.path says what is read")),
        Row("megatron.world_size", decides("parallel.data"), 1),
        Row("megatron.tensor_model_parallel_size", decides("parallel.tensor"), 1),
        Row("megatron.checkpoint_tensor_model_parallel_size", ignored("the opener counts the files")),
        Row("megatron.seed", to("training.seed"), 1234),
        Row(f"{MODEL}.vocab_size", to("model.vocab_size"), 25600),
        Row(f"{MODEL}.hidden_size", to("model.hidden_size"), 768),
        Row(f"{MODEL}.num_hidden_layers", to("model.num_layers"), 12),
        Row(f"{MODEL}.num_attention_heads", to("model.num_attention_heads"), 12),
        Row(f"{MODEL}.max_position_embeddings", to("model.max_position_embeddings"), 2048),
        Row(f"{MODEL}.layernorm_epsilon", to("model.layernorm_epsilon"), 1e-12),
        Row(f"{MODEL}.ffn_hidden_size", decides("model.ffn_hidden_size")),
        Row(
            f"{MODEL}.{{hidden_dropout,hidden_dropout_prob,attention_dropout,attention_probs_dropout_prob,"
            "init_method_std,initializer_range}",
            decides("model"),
        ),
        Row(f"{MODEL}.bias_gelu_fusion", decides("model.activation")),
        Row(f"{MODEL}.{{fp16,bf16}}", decides("precision.compute")),
        Row(
            f"{MODEL}.apply_residual_connection_post_layernorm",
            only(False, why="the residual is taken before the norm"),
        ),
        Row(f"{MODEL}.kv_channels", decides("model.hidden_size")),
        Row(
            f"{MODEL}.{{hidden_act,intermediate_size,type_vocab_size,apply_query_key_layer_scaling,"
            "attention_softmax_in_fp32,masked_softmax_fusion,bias_dropout_fusion,fp32_residual_connection,"
            "no_persist_layer_norm,layer_norm_eps,model_type,architectures,eod_id,params_dtype,"
            "fp16_lm_cross_entropy,gradient_accumulation_fusion,async_tensor_model_parallel_allreduce,"
            "transformers_version,torch_dtype,use_cache,pad_token_id,position_embedding_type}",
            ignored("read by nobody there, or kernels and tokens"),
        ),
        Row(f"{MODEL}.sequence_parallel", to("parallel.sequence")),
        Row(f"{MODEL}.tokens_to_generate", to("generation.max_new_tokens"), 100),
        Row(f"{MODEL}.top_k", to("generation.top_k"), 0),
        Row(f"{MODEL}.top_p", to("generation.top_p"), 0.9),
        Row(f"{MODEL}.temperature", to("generation.temperature"), 1.0),
    ),
    _combine,
    fixed={
        "task.name": "instruction",
        "task.records.too_long": "cut",
        "model.tie_word_embeddings": True,
        "optimizer.decay": "all",
        "optimizer.clip_grad_norm": None,
        "generation.strategy": "sample",
    },
)
