"""PaddleFleetX's YAML, of its releases of 2022 and 2023."""

from __future__ import annotations

from pathlib import Path

from gptbridge_specs.imports.reading import Reading
from gptbridge_specs.imports.rows import Row, System, above_one, decides, ignored, off, only, option, to

_ALWAYS = 10**9  # steps that no run reaches: at its end it saves and evaluates all the same
_BATCH = ("training.global_batch_size", "training.micro_batch_size")
_STEPS = ("training.max_steps", "training.epochs")
_GLUE = ("cola", "sst2", "mnli", "qnli", "rte", "wnli", "mrpc", "qqp", "stsb")
_KERNELS = ignored("kernels, and their layout of files, are the backend's")
_LOADER = ignored("batches are the core's")
_PRECISION = ("precision.compute",)
_COMPRESSION = {"Compress", "Distillation", "Quantization", "Prune"}
_GRANULARITY = {"full", "full_attn", "core_attn"}


def _combine(reading: Reading) -> None:
    _batch(reading)
    _length(reading)
    _precision(reading)
    _data(reading)
    _schedule(reading)
    if reading.flag("Model.use_recompute"):
        granularity = reading.value("Model.recompute_granularity") or "full"
        if granularity not in _GRANULARITY:
            reading.refuse("Model.recompute_granularity", f"not one of {', '.join(sorted(_GRANULARITY))}")
        reading.set("training.recompute", granularity)
    else:
        reading.set("training.recompute", "none")
    unit, size = reading.whole("Model.vocab_size_divisible_unit"), reading.whole("Model.vocab_size")
    if size is not None:
        rows = (unit or 1) * reading.degree("Distributed.mp_degree")
        padded = -(-size // rows) * rows if unit else size
        if padded != size:
            reading.note(
                f"vocab_size is padded to {padded}, a multiple of {rows}, as there", "Model.vocab_size"
            )
        reading.set("model.vocab_size", padded)
    sections = {key.partition(".")[0] for key in reading.given}
    if "Generation" in sections:
        reading.set("generation.top_p_rule", "paddlenlp")
    for section in sorted(sections & _COMPRESSION):
        if not any(key.startswith(section) and key.endswith("enable") for key in reading.given):
            reading.refuse(section, "compression is not to be had here; train without the section")
    module = str(reading.value("Model.module")).lower()
    for word, command in (("generation", "generate"), ("eval", "evaluate")):
        if word in module:
            reading.note(f"gptbridge {command} does what this module is for; the spec trains", "Model.module")


def _batch(reading: Reading) -> None:
    """Decide the batch: global = local x data x sharding; micro divides local."""
    dp, mp, pp = (f"Distributed.{name}_degree" for name in ("dp", "mp", "pp"))
    tensor, pipeline = reading.degree(mp), reading.degree(pp)
    sharding = reading.degree("Distributed.sharding.sharding_degree")
    data = reading.degree(dp) if reading.whole(dp) is not None else None
    if data is None:
        others = tensor * pipeline * sharding
        data = (reading.facts.devices or others) // others
        why = (
            "what the devices leave"
            if reading.facts.devices
            else "1 where neither the file nor --devices says"
        )
        reading.note(f"{dp} is not set: {why}: parallel.data={data}")
    reading.set("parallel.data", data, dp)
    whole, local, micro = (f"{name}_batch_size" for name in ("global", "local", "micro"))
    sizes = {
        name: reading.whole(f"Global.{name}", f"Data.batch_size.{name}") for name in (whole, local, micro)
    }
    replicas = data * sharding
    stated = sizes[whole]
    if sizes[local] is None and stated is not None:
        sizes[local] = stated // replicas
    elif sizes[local] is None:
        reading.refuse("Global.local_batch_size", "neither this nor Global.global_batch_size is set")
        return
    local_size = sizes[local] or 1
    total = local_size * replicas
    if stated not in (None, total):
        key = reading.key(f"Global.{whole}", f"Data.batch_size.{whole}")
        reading.refuse(key, f"local_batch_size={sizes[local]} x data x sharding = {replicas} gives {total}")
    reading.set(
        "training.global_batch_size", total, reading.key(f"Global.{local}", f"Data.batch_size.{local}")
    )
    size = sizes[micro] or local_size
    reading.set("training.micro_batch_size", size, reading.key(f"Global.{micro}", f"Data.batch_size.{micro}"))
    _accumulation(reading, local_size, size)
    stage = reading.whole("Distributed.sharding.sharding_stage") if sharding > 1 else 0
    reading.set("parallel.sharding_stage", 2 if stage is None else stage)


def _accumulation(reading: Reading, local: int, micro: int) -> None:
    stated = reading.whole("Engine.accumulate_steps")
    if stated not in (None, local // micro):
        reading.refuse("Engine.accumulate_steps", f"local // micro batch size is {local // micro}")


def _length(reading: Reading) -> None:
    """Decide steps and intervals, which count epochs where `run_mode` says so."""
    by_epoch = str(reading.value("Engine.run_mode")).lower() == "epoch"
    steps, epochs = reading.whole("Engine.max_steps"), reading.number("Engine.num_train_epochs")
    by_epoch = by_epoch and epochs != -1
    if by_epoch or steps == -1:
        reading.set("training.epochs", epochs, "Engine.num_train_epochs")
        steps = None
    else:
        reading.set("training.max_steps", steps, "Engine.max_steps")
    save_key = "Engine.save_load.save_epoch" if by_epoch else "Engine.save_load.save_steps"
    every = {"evaluation.interval": "Engine.eval_freq", "checkpoint.interval": save_key}
    of_epoch = 1
    if by_epoch:
        samples = reading.ask("samples", "Engine.run_mode", "eval_freq and save_epoch count epochs")
        of_epoch = max((samples or 1) // max(reading.fields.get("training.global_batch_size", 1), 1), 1)
    for name, key in every.items():
        interval = reading.whole(key)
        never = 0 if name.startswith("evaluation") else steps or _ALWAYS
        reading.set(name, never if interval in (None, -1, 0) else interval * of_epoch, key)
    batches = reading.whole("Engine.eval_iters")
    if batches == 0:
        reading.set("evaluation.interval", 0, "Engine.eval_iters")
    reading.set("evaluation.batches", _ALWAYS if batches in (None, -1, 0) else batches, "Engine.eval_iters")


def _precision(reading: Reading) -> None:
    names = ("use_pure_fp16", "enable", "dtype")
    older, enable, dtype = (reading.key(f"Engine.mix_precision.{name}") for name in names)
    newer = enable in reading.given or dtype in reading.given
    known = {"float16": "fp16", "bfloat16": "bf16"}
    word = str(reading.value(dtype) or "float16")
    if word not in known:
        reading.refuse(dtype, f"not one of {', '.join(known)}")
    compute = known.get(word, "fp16") if reading.flag(enable) else "fp32"
    if not newer:
        compute = "fp16" if reading.flag(older) else "fp32"
    reading.set("precision.compute", compute, enable if newer else older)
    if compute == "fp16":
        reading.set("precision.loss_scale", "dynamic")
    reading.set("data.mask_end_of_text", not newer)
    words = (
        "counts them, as its releases of 2023 do" if newer else "leaves them out, as its releases of 2022 do"
    )
    reading.note(f"the loss at positions whose input is end-of-text: {words} (data.mask_end_of_text)")


def _data(reading: Reading) -> None:
    name = str(reading.value("Data.Train.dataset.name") or "GPTDataset")
    classifies = name.lower().replace("-", "").replace("_", "") in _GLUE
    if name != "GPTDataset" and not classifies:
        reading.refuse("Data.Train.dataset.name", "not GPTDataset, and none of GLUE's")
    key = reading.key("Data.Train.dataset.input_dir", "Data.dataset.input_dir")
    if classifies:
        reading.set("task.name", "classification", "Data.Train.dataset.name")
        key = "Data.Train.dataset.root"
    elif split := reading.value("Data.Train.dataset.split", "Data.dataset.split"):
        reading.set("data.split", split, reading.key("Data.Train.dataset.split", "Data.dataset.split"))
    if reading.value(key) is not None:
        reading.set("data.path", _first_prefix(reading, key), key)
    if "training.seq_length" not in reading.fields:
        reading.set("training.seq_length", 128 if classifies else 1024)
        reading.note("Data.Train.dataset does not say how long a sample is: its class's default is taken")
    train_is_there = any(key.startswith("Data.Train.dataset.") for key in reading.given)
    for part in ("Eval", "Test") if train_is_there else ():
        for field in () if classifies else ("name", "input_dir", "split", "max_seq_len"):
            train, other = f"Data.Train.dataset.{field}", f"Data.{part}.dataset.{field}"
            if other in reading.given and reading.value(other) != reading.value(train):
                reading.refuse(
                    other, f"differs from {train} = {reading.value(train)}: a run reads one dataset"
                )


def _first_prefix(reading: Reading, key: str) -> str:
    """Return the prefix in the folder that the system reads: the first by name."""
    folder = Path(str(reading.value(key)))
    files = sorted(folder.glob("*_idx.npz")) if folder.is_dir() else []
    if files:
        return str(files[0]).removesuffix("_idx.npz")
    reading.note("holds no *_idx.npz here: set data.path to the prefix of the dataset, without _ids.npy", key)
    return str(folder)


def _schedule(reading: Reading) -> None:
    shapes = {"CosineAnnealingWithWarmupDecay": "cosine", "LinearDecayWithWarmup": "linear"}
    key = "Optimizer.lr.name"
    name = str(reading.value(key))
    if name not in shapes:
        reading.refuse(key, f"not one of {', '.join(shapes)}")
        return
    reading.set("schedule.name", shapes[name], key)
    if name.startswith("Cosine"):
        for field in ("max_lr", "min_lr", "warmup_rate", "decay_steps"):
            if reading.value(f"Optimizer.lr.{field}") is not None:
                reading.set(
                    f"schedule.{field}", reading.value(f"Optimizer.lr.{field}"), f"Optimizer.lr.{field}"
                )
        return
    _linear(reading)


def _linear(reading: Reading) -> None:
    rate, warmup = reading.number("Optimizer.lr.learning_rate"), reading.value("Optimizer.lr.warmup")
    if rate is None:
        reading.refuse("Optimizer.lr.learning_rate", "LinearDecayWithWarmup needs it")
    reading.set("schedule.max_lr", rate, "Optimizer.lr.learning_rate")
    reading.set("schedule.min_lr", 0.0)
    if isinstance(warmup, int) or warmup is None:
        reading.set("schedule.warmup_steps", warmup or 0, "Optimizer.lr.warmup")
    else:
        reading.set("schedule.warmup_rate", reading.number("Optimizer.lr.warmup"), "Optimizer.lr.warmup")
    epochs, each = reading.whole("Optimizer.lr.epochs"), reading.whole("Optimizer.lr.step_each_epoch")
    if epochs and each:
        reading.set("schedule.decay_steps", epochs * each, "Optimizer.lr.step_each_epoch")


_MODULES = {"gptmodule": "language_modeling", "gptmoduleauto": "language_modeling",
            "gptfinetunemodule": "classification", "gptgenerationmodule": "language_modeling",
            "gptgenerationmoduleauto": "language_modeling", "gptevalmodule": "language_modeling"}  # fmt: skip
SYSTEM = System(
    "PaddleFleetX",
    (
        Row("Global.device", to("training.device", {"gpu": "gpu", "cpu": "cpu", "npu": "ascend"}), "gpu"),
        Row("Global.seed", to("training.seed"), 1024),
        Row("{Global,Data.batch_size}.{global,local,micro}_batch_size", decides(*_BATCH)),
        Row("Engine.run_mode", decides(*_STEPS), "step"),
        Row("Engine.max_steps", decides(*_STEPS), 500000),
        Row("Engine.num_train_epochs", decides(*_STEPS), 1),
        Row("Engine.accumulate_steps", ignored("derived: local // micro batch size")),
        Row("Engine.logging_freq", to("training.log_interval"), 1),
        Row("Engine.eval_freq", decides("evaluation.interval"), -1),
        Row("Engine.eval_iters", decides("evaluation.batches"), 10),
        Row("Engine.test_iters", ignored("gptbridge evaluate measures the test split")),
        Row("Engine.mix_precision.{use_pure_fp16,enable,dtype}", decides(*_PRECISION)),
        Row("Engine.mix_precision.level", ignored("master weights are always fp32")),
        Row("Engine.mix_precision.scale_loss", to("precision.initial_loss_scale"), 32768.0),
        Row(
            "Engine.mix_precision.{custom_black_list,custom_white_list,use_main_grad,use_fp16_guard}",
            ignored("one rule of precision for all operators"),
        ),
        Row("Engine.save_load.save_steps", decides("checkpoint.interval"), -1),
        Row("Engine.save_load.save_epoch", decides("checkpoint.interval"), 1),
        Row("Engine.save_load.output_dir", option("--run {}")),
        Row("Engine.save_load.ckpt_dir", option("--resume {}")),
        Row(
            "Model.module",
            to("task.name", _MODULES, "Mixtures of experts and other models are not to be had here"),
        ),
        Row("Model.name", only("GPT", why="only GPT is to be had here")),
        Row("Model.vocab_size Model.vocab_size_divisible_unit", decides("model.vocab_size")),
        Row("Model.{hidden_size,num_layers,num_attention_heads,max_position_embeddings}", to("model.*")),
        Row("Model.{hidden_dropout_prob,attention_probs_dropout_prob}", to("model.*"), 0.1),
        Row("Model.initializer_range", to("model.*"), 0.02),
        Row("Model.ffn_hidden_size", to("model.*")),
        Row("Model.type_vocab_size", ignored("there is no such embedding, there neither")),
        Row("Model.{fused_linear,fuse_attn_qkv,fused_softmax_with_triangular,use_flash_attn}", _KERNELS),
        Row("Model.{use_fused_dropout_add,fused_bias_dropout_residual}", _KERNELS),
        Row("Model.scale_qk_by_layer_num", ignored("divides by the layer and multiplies by it again")),
        Row("Model.sequence_parallel", to("parallel.sequence"), False),
        Row("Model.{use_recompute,recompute_granularity}", decides("training.recompute")),
        Row("Model.{no_recompute_layers,recompute_layers}", off("every layer is computed again, or none")),
        Row("Model.virtual_pp_degree", above_one("parallel.virtual_pipeline")),
        Row("Model.num_experts", only(1, why="mixtures of experts are not to be had here")),
        Row(
            "Model.{gate,top_k,topk,expert_interval,expert_mode,balance_loss_weight} Model.moe_*",
            ignored("of a mixture of experts, which this is not"),
        ),
        Row("Model.pretrained", option("--init-from {}")),
        Row("Model.num_classes", to("task.num_labels")),
        Row("Model.loss.{train,eval}.name", only("CrossEntropyLoss", why="another loss is not to be had")),
        Row("Model.metric.*", ignored("gptbridge evaluate has every metric of a task")),
        Row("Model.freeze_embedding", off("all weights are trained, or adapters alone (task.lora)")),
        Row("Data.{Train,Eval,Test}.dataset.name", decides("task.name")),
        Row("Data.{Train,Eval,Test}.dataset.input_dir Data.dataset.input_dir", decides("data.path")),
        Row("Data.{Train,Eval,Test}.dataset.root", decides("data.path")),
        Row("Data.{Train,Eval,Test}.dataset.split Data.dataset.split", decides("data.split")),
        Row(
            "Data.Train.dataset.{max_seq_len,max_length} Data.dataset.max_seq_len",
            to("training.seq_length"),
        ),
        Row("Data.{Eval,Test}.dataset.{max_seq_len,max_length}", decides("training.seq_length")),
        Row("Data.{Train,Eval,Test}.dataset.{num_samples,mode,seed,eos_id}", ignored("filled in there too")),
        Row(
            "Data.{Train,Eval,Test}.sampler.shuffle",
            ignored("samples are shuffled whatever it says: data.shuffle stays true"),
        ),
        Row("Data.{Train,Eval,Test}.sampler.{name,drop_last,batch_size}", _LOADER),
        Row("Data.{Train,Eval,Test}.loader.{num_workers,return_list,collate_fn}", _LOADER),
        Row("Data.{Train,Eval,Test}.{collate_fn,sample_split}", _LOADER),
        Row(
            "Data.{Eval,Test}.dataset.{overlapping_eval,cloze_eval,eval_path,tokenizer_path}",
            ignored("gptbridge evaluate says it: --task, --data, --window"),
        ),
        Row("Distributed.dp_degree", decides("parallel.data")),
        Row("Distributed.mp_degree", to("parallel.tensor"), 1),
        Row("Distributed.pp_degree", to("parallel.pipeline"), 1),
        Row("Distributed.sharding.sharding_degree", to("parallel.sharding"), 1),
        Row("Distributed.sharding.sharding_stage", decides("parallel.sharding_stage")),
        Row("Distributed.sharding.sharding_offload", off("optimizer state stays on its device")),
        Row(
            "Distributed.sharding.{reduce_overlap,broadcast_overlap,comm_overlap} "
            "Distributed.{fuse_sequence_parallel_allreduce,pp_recompute_interval}",
            ignored("timing, not numbers"),
        ),
        Row("Optimizer.name", to("optimizer.name", {"fusedadamw": "adamw", "adamw": "adamw"}), "FusedAdamW"),
        Row("Optimizer.weight_decay", to("optimizer.*"), 0.01),
        Row("Optimizer.beta1 Optimizer.beta2 Optimizer.epsilon", to("optimizer.*")),
        Row("Optimizer.adam_beta1", to("optimizer.beta1")),
        Row("Optimizer.adam_beta2", to("optimizer.beta2")),
        Row("Optimizer.adam_epsilon", to("optimizer.epsilon")),
        Row(
            "Optimizer.{multi_precision,tensor_fusion} Fused.tensor_fusion",
            ignored("master weights are always fp32"),
        ),
        Row("Optimizer.grad_clip.name", only("ClipGradByGlobalNorm", why="clipping is by the global norm")),
        Row("Optimizer.grad_clip.clip_norm Optimizer.grad_clip", to("optimizer.clip_grad_norm")),
        Row("Optimizer.lr.name", decides("schedule.name"), "CosineAnnealingWithWarmupDecay"),
        Row("Optimizer.lr.max_lr", decides("schedule.max_lr"), 5e-5),
        Row("Optimizer.lr.min_lr", decides("schedule.min_lr"), 1e-5),
        Row("Optimizer.lr.warmup_rate", decides("schedule.warmup_rate"), 0.01),
        Row("Optimizer.lr.decay_steps", decides("schedule.decay_steps"), 360000),
        Row("Optimizer.lr.learning_rate", decides("schedule.max_lr")),
        Row("Optimizer.lr.warmup", decides("schedule.warmup_steps")),
        Row("Optimizer.lr.{epochs,step_each_epoch}", decides("schedule.decay_steps")),
        Row("Optimizer.lr.use_increments", only(True, why="its learning rate would stay 0")),
        Row("Generation.top_k", to("generation.*")),
        Row("Generation.top_p", to("generation.*")),
        Row("Generation.temperature", to("generation.*")),
        Row("Generation.max_dec_len", to("generation.max_new_tokens")),
        Row("Generation.min_dec_len", to("generation.min_new_tokens")),
        Row("Generation.{num_return_sequences,repetition_penalty}", to("generation.*")),
        Row(
            "Generation.decode_strategy",
            to(
                "generation.strategy",
                {"sampling": "sample", "greedy_search": "greedy", "beam_search": "beam"},
            ),
        ),
        Row(
            "Generation.{input_text,vocab_dir,tokenizer_dir,use_topp_sampling,inference,early_finish}",
            ignored("gptbridge generate says it: --prompt, --tokenizer"),
        ),
        Row("Tuning.enable", off("layouts are not searched: parallel says the one")),
        Row(
            "Profiler.* Inference.* Fused.* Tuning.*",
            ignored("of tools that are not part of training"),
        ),
        Row("Offline_Eval.* Eval.*", ignored("gptbridge evaluate says it: --task, --data, --batch-size")),
        Row("{Compress,Distillation,Quantization,Prune}.*enable", off("compression is not to be had here")),
        Row("{Compress,Distillation,Quantization,Prune}.*", ignored("of compression, which is off")),
    ),
    _combine,
    fixed={
        "model.activation": "gelu_tanh",
        "model.layernorm_epsilon": 1e-5,
        "model.tie_word_embeddings": True,
        "optimizer.decay": "matrices",
        "optimizer.beta1": 0.9,
        "optimizer.beta2": 0.999,
        "optimizer.epsilon": 1e-8,
        "optimizer.clip_grad_norm": None,
        "precision.loss_scale_window": 2000,
    },
    also=("Engine.", "Global."),
)
