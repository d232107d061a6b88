"""MindFormers' YAML of a run."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from gptbridge_specs.imports.reading import Reading
from gptbridge_specs.imports.rows import Row, System, decides, ignored, off, only, option, refused, to

_ALWAYS = 10**9  # steps that no run reaches
_BATCH = ("training.global_batch_size", "training.micro_batch_size")
_CONFIG = "model.model_config"
_LORA = {
    "dense1": ("q",),
    "dense2": ("k",),
    "dense3": ("v",),
    "projection": ("out", "proj"),
    "mapping": ("fc",),
}
_FP = {"float16": "fp16", "float32": "fp32", "bfloat16": "bf16"}
_LR = {
    **dict.fromkeys(("polynomial", "polynomialwithwarmuplr"), "polynomial"),
    **dict.fromkeys(("cosine", "cosinewithwarmuplr"), "cosine"),
    **dict.fromkeys(("linear", "linearwithwarmuplr"), "linear"),
    **dict.fromkeys(("constant", "constantwarmuplr", "constantwithwarmuplr"), "constant"),
}
_OPTIMIZERS = dict.fromkeys(
    ("fusedadamweightdecay", "fp32stateadamweightdecay", "adamweightdecay", "adamw"), "adamw"
)
_DEVICES = {"ascend": "ascend", "gpu": "gpu", "cpu": "cpu"}
_GELU = {"gelu": "gelu_tanh", "fast_gelu": "quick_gelu"}
_TRAINERS = {
    "causallanguagemodelingtrainer": "language_modeling",
    "textclassificationtrainer": "classification",
}
_WRAPPERS = ("MFTrainOneStepCell", "MFPipelineWithLossScaleCell")
_CALLBACKS = (
    "MFLossMonitor", "SummaryMonitor", "CheckpointMonitor", "CheckpointMointor", "ObsMonitor", "EvalCallBack"
)  # fmt: skip
_SCALERS = ("DynamicLossScaleUpdateCell", "FixedLossScaleUpdateCell")
_SCALE = "runner_wrapper.scale_sense"
_TOOLS = ignored("tools and runtime, not numbers")


def _combine(reading: Reading) -> None:
    _batch(reading)
    _schedule(reading)
    _scaling(reading)
    _model(reading)
    _callbacks(reading)
    clips = reading.flag("runner_wrapper.use_clip_grad")
    norm = reading.number("runner_wrapper.max_grad_norm")
    reading.set("optimizer.clip_grad_norm", norm if clips else None, "runner_wrapper.use_clip_grad")
    recompute = "full" if reading.flag("recompute_config.recompute") else "none"
    if reading.flag("recompute_config.select_recompute"):
        recompute = "core_attn"
        reading.note("its nearest level here is core_attn", "recompute_config.select_recompute")
    reading.set("training.recompute", recompute, "recompute_config.recompute")
    reading.set("evaluation.interval", _evaluation(reading) if reading.flag("do_eval") else 0, "do_eval")
    command = {"eval": "evaluate", "predict": "generate"}.get(str(reading.value("run_mode")))
    if command:
        reading.note(f"gptbridge {command} does what this mode is for; the spec trains", "run_mode")
    if reading.value("processor.tokenizer.type") is not None and reading.value("data.tokenizer") is None:
        reading.note("data.tokenizer must name the folder of the vocabulary: a MindRecord brings none",
                     "processor.tokenizer.type")  # fmt: skip


def _evaluation(reading: Reading) -> int:
    """Return the steps between evaluations, which may count epochs."""
    steps, epochs = reading.whole("eval_step_interval") or 0, reading.whole("eval_epoch_interval") or 0
    if steps > 0 or epochs <= 0:
        return max(steps, 0)
    samples = reading.ask("samples", "eval_epoch_interval", "it counts epochs") or 1
    batch: int = reading.fields["training.global_batch_size"]
    return epochs * max(samples // batch, 1)


def _batch(reading: Reading) -> None:
    """Decide layout and batch; outside semi-automatic parallelism the layout says nothing."""
    batch, accumulation = (
        reading.degree("runner_config.batch_size"),
        "runner_config.gradient_accumulation_steps",
    )
    micro_steps = reading.degree(accumulation)
    parallel = reading.flag("use_parallel")
    semi = parallel and reading.whole("parallel.parallel_mode") == 1
    tensor, pipeline, data = (
        reading.degree(f"parallel_config.{name}") if semi else 1
        for name in ("model_parallel", "pipeline_stage", "data_parallel")
    )
    replicas = data
    if parallel and not semi:
        replicas = data = reading.ask("devices", "parallel.parallel_mode", "each device is a replica") or 1
    elif semi and not reading.flag("parallel.full_batch"):
        replicas = data * tensor * pipeline
        if replicas > data:
            reading.note(f"without full_batch every one of {replicas} devices reads {batch} samples",
                         "parallel.full_batch")  # fmt: skip
    interleave = reading.degree("micro_batch_interleave_num") if semi else 1
    parts = reading.degree("parallel_config.micro_batch_num") if pipeline > 1 else micro_steps
    total = batch * replicas * interleave * parts
    reading.set("training.global_batch_size", total, "runner_config.batch_size")
    reading.set("training.micro_batch_size", batch, "runner_config.batch_size")
    sharded = semi and data > 1 and reading.flag("parallel.enable_parallel_optimizer")
    key = "parallel.enable_parallel_optimizer"
    reading.set("parallel.data", 1 if sharded else data, "parallel_config.data_parallel")
    reading.set("parallel.sharding", data if sharded else 1, key)
    reading.set("parallel.sharding_stage", int(sharded), key)
    reading.set("parallel.tensor", tensor, "parallel_config.model_parallel")
    reading.set("parallel.pipeline", pipeline, "parallel_config.pipeline_stage")
    sequence = semi and reading.flag("parallel_config.use_seq_parallel")
    reading.set("parallel.sequence", sequence, "parallel_config.use_seq_parallel")


def _schedule(reading: Reading) -> None:
    """Decide the learning rate: counted in steps, or with warmup_epochs in passes."""
    for key in ("lr_end", "warmup_lr_init", "num_cycles", "power"):
        reading.number(f"lr_schedule.{key}")
    total, decay = reading.whole("lr_schedule.total_steps"), reading.whole("lr_schedule.decay_steps")
    reading.set(
        "schedule.decay_steps", decay or (None if total in (None, -1) else total), "lr_schedule.total_steps"
    )
    is_linear = reading.fields.get("schedule.name") == "linear"
    end = 0.0 if is_linear else reading.value("lr_schedule.lr_end")
    reading.set("schedule.min_lr", end, "lr_schedule.lr_end")
    ratio, epochs = reading.number("lr_schedule.warmup_ratio"), reading.whole("lr_schedule.warmup_epochs")
    if epochs:
        samples = reading.ask("samples", "lr_schedule.warmup_epochs", "the warm-up counts epochs")
        steps = epochs * ((samples or 0) // reading.fields["training.global_batch_size"])
        reading.set("schedule.warmup_steps", steps, "lr_schedule.warmup_epochs")
    elif ratio is not None:
        reading.set("schedule.warmup_rate", ratio, "lr_schedule.warmup_ratio")
    else:
        steps = reading.whole("lr_schedule.warmup_steps")
        reading.set("schedule.warmup_steps", steps, "lr_schedule.warmup_steps")
    if is_linear and (ratio or reading.fields.get("schedule.warmup_steps")):
        reading.set("schedule.name", "polynomial", "lr_schedule.type")
        reading.set("schedule.power", 1.0)
        reading.note(
            "linear from the end of the warm-up is schedule.name=polynomial of power 1", "lr_schedule.type"
        )


def _scaling(reading: Reading) -> None:
    if reading.number(_SCALE) is not None:
        reading.set("precision.loss_scale", reading.number(_SCALE), _SCALE)
        return
    kind = str(reading.value(f"{_SCALE}.type"))
    value = reading.number(f"{_SCALE}.loss_scale_value")
    fixed = kind.startswith("Fixed")
    reading.set("precision.loss_scale", value if fixed else "dynamic", f"{_SCALE}.type")
    if not fixed:
        reading.set("precision.initial_loss_scale", value, f"{_SCALE}.loss_scale_value")
        reading.set(
            "precision.loss_scale_window", reading.whole(f"{_SCALE}.scale_window"), f"{_SCALE}.scale_window"
        )


def _model(reading: Reading) -> None:
    length = reading.value(f"{_CONFIG}.seq_length")
    reading.set("training.seq_length", length, f"{_CONFIG}.seq_length")
    positions = reading.value(f"{_CONFIG}.max_position_embeddings") or length
    reading.set("model.max_position_embeddings", positions, f"{_CONFIG}.max_position_embeddings")
    ratio, hidden = reading.whole(f"{_CONFIG}.expand_ratio"), reading.whole(f"{_CONFIG}.hidden_size")
    if ratio and hidden:
        reading.set("model.ffn_hidden_size", ratio * hidden, f"{_CONFIG}.expand_ratio")
    hidden_dropout = reading.number(f"{_CONFIG}.hidden_dropout_rate")
    embedding = reading.number(f"{_CONFIG}.embedding_dropout_prob")
    if embedding is not None and embedding != hidden_dropout:
        reading.refuse(f"{_CONFIG}.embedding_dropout_prob", "one dropout for embeddings and branches: "
                       f"hidden_dropout_rate is {hidden_dropout}")  # fmt: skip
    if str(reading.value(f"{_CONFIG}.param_init_type")) == "float16":
        reading.note("master weights are fp32 here", f"{_CONFIG}.param_init_type")
    if reading.fields.get("task.name") != "classification":
        reading.fields.pop("task.num_labels", None)
    if any(key.startswith(f"{_CONFIG}.pet_config.") for key in reading.given):
        _lora(reading)


def _lora(reading: Reading) -> None:
    pet = f"{_CONFIG}.pet_config"
    for ours, (theirs, default) in {
        "rank": ("lora_rank", 8), "alpha": ("lora_alpha", 16), "dropout": ("lora_dropout", 0.01)
    }.items():  # fmt: skip
        value = reading.value(f"{pet}.{theirs}")
        reading.set(f"task.lora.{ours}", default if value is None else value, f"{pet}.{theirs}")
    pattern = str(reading.value(f"{pet}.target_modules") or ".*dense1|.*dense3")
    chosen: list[str] = []
    with suppress(re.error, RecursionError):  # a short one, on words of ten letters
        matched = [name for name in _LORA if len(pattern) <= 200 and re.match(pattern, name)]
        chosen = [part for name in matched for part in _LORA[name]]
    if not chosen:
        reading.refuse(f"{pet}.target_modules", f"matches none of {', '.join(_LORA)}")
    reading.set("task.lora.targets", chosen, f"{pet}.target_modules")


def _callbacks(reading: Reading) -> None:
    """Take steps and number of checkpoints from the callback that saves them, if there is one."""
    intervals = [key for key in reading.given if key.endswith(".save_checkpoint_steps")]
    keeps = [key for key in reading.given if key.endswith(".keep_checkpoint_max")]
    steps = reading.whole(intervals[0]) if intervals else _ALWAYS
    reading.set("checkpoint.interval", steps, intervals[0] if intervals else "callbacks")
    kept = reading.whole(keeps[0]) if keeps else 5
    reading.set("checkpoint.keep", max(2, kept or 2), keeps[0] if keeps else "callbacks")


def _data_set(part: str) -> tuple[Row, ...]:
    data = f"{part}.data_loader"
    return (
        Row(f"{data}.type", only("MindDataset", why="prepare the data: gptbridge data prepare")),
        Row(f"{part}.tokenizer.*", ignored("data.tokenizer says it")),
        Row(
            f"{part}.{{input_columns,num_parallel_workers,python_multiprocessing,drop_remainder,batch_size,"
            "numa_enable,prefetch_size,seed}",
            ignored("batches are the core's"),
        ),
        Row(f"{part}.repeat", only(1, why="training.epochs says how often")),
    )


def _any(key: str, *values: Any, why: str) -> Row:
    return Row(key, only(*values, why=why))


SYSTEM = System(
    "MindFormers",
    (
        Row("seed", to("training.seed"), 0),
        _any("run_mode", "train", "finetune", "eval", "predict", why="no such mode"),
        Row("output_dir", option("--run {}")),
        Row("load_checkpoint resume_or_finetune_checkpoint", option("--init-from {}")),
        Row("resume_training", option("--resume auto")),
        Row("auto_trans_ckpt src_strategy_path_or_dir remote_save_url load_ckpt_format load_ckpt_async",
            ignored("--init-from and --resume open any split")),
        Row("only_save_strategy", off("there are no strategies to save")),
        Row("context.device_target", to("training.device", _DEVICES), "Ascend"),
        Row("context.mode", ignored("the mindspore backend compiles always, others by training.compile")),
        Row("context.*", _TOOLS),
        Row("runner_config.epochs", to("training.epochs"), 1),
        Row("runner_config.batch_size runner_config.gradient_accumulation_steps", decides(*_BATCH)),
        Row("runner_config.{sink_mode,sink_size,sink_per_epoch,initial_epoch,initial_step,per_epoch_size,"
            "has_trained_steps,has_trained_epoches,num_classes,image_size}", _TOOLS),
        Row("base_config", refused("an older form in several files: give one file that holds them all")),
        Row("micro_batch_interleave_num parallel_config.micro_batch_num", decides(*_BATCH)),
        _any("runner_wrapper.type", *_WRAPPERS, why="another way to train"),
        Row(_SCALE, decides("precision.loss_scale")),
        Row(f"{_SCALE}.type", only(*_SCALERS, why="another way to scale the loss"), _SCALERS[0]),
        Row(f"{_SCALE}.loss_scale_value", decides("precision.initial_loss_scale"), 4294967296),
        Row(f"{_SCALE}.scale_window", decides("precision.loss_scale_window"), 1000),
        _any(f"{_SCALE}.scale_factor", 2, why="the loss scale is doubled and halved"),
        Row("runner_wrapper.use_clip_grad", decides("optimizer.clip_grad_norm")),
        Row("runner_wrapper.max_grad_norm", decides("optimizer.clip_grad_norm"), 1.0),
        Row("use_parallel", decides("parallel.data", "parallel.tensor", "parallel.pipeline")),
        _any("parallel.parallel_mode", 0, 1, why="it states no layout: data parallel is 0, semi-automatic 1"),
        Row("parallel.full_batch", decides("training.global_batch_size")),
        Row("parallel.enable_parallel_optimizer", decides("parallel.sharding", "parallel.sharding_stage")),
        Row("parallel.{gradients_mean,search_mode,loss_repeated_mean,strategy_ckpt_save_file} "
            "parallel.enable_alltoall "
            "parallel.strategy_ckpt_config.* parallel.parallel_optimizer_config.*",
            ignored("the loss is the mean over all tokens, and no strategies are written")),
        Row("parallel_config.data_parallel", decides("parallel.data")),
        Row("parallel_config.model_parallel", decides("parallel.tensor")),
        Row("parallel_config.pipeline_stage", decides("parallel.pipeline")),
        Row("parallel_config.use_seq_parallel", decides("parallel.sequence")),
        Row("parallel_config.{vocab_emb_dp,gradient_aggregation_group,optimizer_shard}", _TOOLS),
        _any("parallel_config.expert_parallel", 1, why="mixtures of experts are not to be had"),
        _any("moe_config.expert_num", 1, why="mixtures of experts are not to be had"),
        Row("moe_config.*", ignored("of a mixture of experts, which this is not")),
        Row("recompute_config.{recompute,select_recompute}", decides("training.recompute")),
        Row("recompute_config.*", _TOOLS),
        Row("auto_tune filepath_prefix autotune_per_step profile profile_start_step profile_stop_step "
            "init_start_profile profile_communication profile_memory", _TOOLS),
        Row("trainer.type", to("task.name", _TRAINERS)),
        Row("trainer.model_name", ignored("model_config says the sizes")),
        Row("do_eval", decides("evaluation.interval")),
        Row("eval_step_interval", decides("evaluation.interval"), 100),
        Row("eval_epoch_interval", decides("evaluation.interval")),
        Row("train_dataset.data_loader.dataset_dir", to("data.path")),
        Row("train_dataset.data_loader.shuffle", to("data.shuffle")),
        Row("eval_dataset.data_loader.dataset_dir", to("data.validation_path")),
        Row("eval_dataset.data_loader.shuffle", ignored("a measure does not depend on the order")),
        *_data_set("train_dataset"),
        *_data_set("eval_dataset"),
        Row("train_dataset_task.* eval_dataset_task.*", ignored("the same data once more")),
        Row(f"{_CONFIG}.type", only("GPT2Config", why="another family is not to be had")),
        Row("model.arch.type", only("GPT2LMHeadModel", "GPT2ForSequenceClassification", "GPT2WithLora",
                                    why="another family is not to be had")),
        Row(f"{_CONFIG}.vocab_size", to("model.vocab_size"), 50257),
        Row(f"{_CONFIG}.hidden_size", to("model.hidden_size"), 768),
        Row(f"{_CONFIG}.num_layers", to("model.num_layers"), 12),
        Row(f"{_CONFIG}.num_heads", to("model.num_attention_heads"), 12),
        Row(f"{_CONFIG}.seq_length", decides("training.seq_length"), 1024),
        Row(f"{_CONFIG}.max_position_embeddings", decides("model.max_position_embeddings")),
        Row(f"{_CONFIG}.expand_ratio", decides("model.ffn_hidden_size"), 4),
        Row(f"{_CONFIG}.hidden_act", to("model.activation", _GELU), "gelu"),
        Row(f"{_CONFIG}.hidden_dropout_rate", to("model.hidden_dropout_prob"), 0.1),
        Row(f"{_CONFIG}.attention_dropout_rate", to("model.attention_probs_dropout_prob"), 0.1),
        Row(f"{_CONFIG}.embedding_dropout_prob", decides("model.hidden_dropout_prob")),
        Row(f"{_CONFIG}.compute_dtype", to("precision.compute", _FP), "float16"),
        Row(f"{_CONFIG}.{{param_init_type,layernorm_compute_type,softmax_compute_type}}",
            ignored("master weights, norms and softmax are fp32")),
        Row(f"{_CONFIG}.checkpoint_name_or_path", option("--init-from {}")),
        Row(f"{_CONFIG}.{{batch_size,eos_token_id,pad_token_id,bos_token_id,unk_token_id,use_past,is_dynamic,"
            "block_size,num_blocks,use_flash_attention,use_prompt_flash_attention,"
            "use_incre_flash_attention}", _TOOLS),
        _any(f"{_CONFIG}.offset", 0, why="stages hold as many layers each"),
        Row(f"{_CONFIG}.post_layernorm_residual", off("the residual is taken before the norm")),
        Row(f"{_CONFIG}.num_labels", to("task.num_labels"), 2),
        Row(f"{_CONFIG}.{{repetition_penalty,top_k,top_p}}", to("generation.*")),
        Row(f"{_CONFIG}.max_decode_length", to("generation.max_length")),
        Row(f"{_CONFIG}.do_sample", to("generation.strategy", {"true": "sample", "false": "greedy"})),
        _any(f"{_CONFIG}.pet_config.pet_type", "lora", why="LoRA alone"),
        Row(f"{_CONFIG}.pet_config.{{lora_rank,lora_alpha,lora_dropout,target_modules}}",
            decides("task.lora")),
        Row(f"{_CONFIG}.pet_config.{{in_channels,out_channels}}", ignored("the model's own widths")),
        Row("lr_schedule.type", to("schedule.name", _LR), "polynomial"),
        Row("lr_schedule.learning_rate", to("schedule.max_lr")),
        Row("lr_schedule.lr_end", decides("schedule.min_lr"), 1e-7),
        Row("lr_schedule.warmup_steps", decides("schedule.warmup_steps"), 0),
        Row("lr_schedule.{warmup_ratio,warmup_epochs}", decides("schedule.warmup_steps")),
        Row("lr_schedule.{total_steps,decay_steps}", decides("schedule.decay_steps")),
        Row("lr_schedule.power", to("schedule.power"), 1.0),
        _any("lr_schedule.warmup_lr_init", 0, why="a warm-up begins at 0"),
        _any("lr_schedule.num_cycles", 0.5, why="a cosine falls once"),
        Row("layer_scale lr_scale", off("one learning rate for all layers")),
        Row("layer_decay lr_scale_factor", ignored("of layer_scale and lr_scale, which are off")),
        Row("optimizer.type", to("optimizer.name", _OPTIMIZERS), "FusedAdamWeightDecay"),
        Row("optimizer.beta1", to("optimizer.beta1"), 0.9),
        Row("optimizer.beta2", to("optimizer.beta2"), 0.999),
        Row("optimizer.eps", to("optimizer.epsilon"), 1e-6),
        Row("optimizer.weight_decay", to("optimizer.weight_decay"), 0.0),
        Row("optimizer.learning_rate", refused("lr_schedule.learning_rate says it")),
        _any("callbacks.*.type", *_CALLBACKS, why="no such callback here"),
        Row("callbacks.*.save_checkpoint_steps", decides("checkpoint.interval")),
        Row("callbacks.*.keep_checkpoint_max", decides("checkpoint.keep")),
        Row("callbacks.*.{prefix,directory,integrated_save,async_save,save_network_params,save_trainable_params,"
            "keep_default_action,per_print_times,upload_frequency} eval_callbacks.* callbacks",
            ignored("a checkpoint is whole, and has its step for a name")),
        Row("metric.*", ignored("gptbridge evaluate has every metric of a task")),
        Row("processor.*", ignored("data.tokenizer says it")),
    ),
    _combine,
    fixed={
        "model.initializer_range": 0.01,
        "model.layernorm_epsilon": 1e-5,
        "model.tie_word_embeddings": True,
        "optimizer.decay": "matrices",
    },
    notes=(
        "AdamW corrects the bias of its moments here; there it does not",
        "weights of residual projections begin / sqrt(2 x layers) here, and there as all others",
    ),
)  # fmt: skip
