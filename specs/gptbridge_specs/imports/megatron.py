"""Megatron-LM's arguments of `pretrain_gpt.py`."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptbridge_specs.imports.reading import Reading
from gptbridge_specs.imports.rows import Row, System, decides, ignored, only, option, refused, to

_BATCH = ("training.global_batch_size", "training.micro_batch_size")
_LR = {"constant": "constant", "linear": "linear", "cosine": "cosine"}
_GPT2 = "another architecture than GPT-2's"
_RECOMPUTE = "training.recompute"


def _combine(reading: Reading) -> None:
    total = _batch(reading)
    steps = _length(reading, total)
    _schedule(reading, total, steps)
    _vocabulary(reading)
    _data(reading)
    erf = reading.flag("no-bias-gelu-fusion") or reading.flag("onnx-safe")
    exact = erf and not reading.flag("openai-gelu")
    reading.set("model.activation", "gelu_erf" if exact else "gelu_tanh", "openai-gelu")
    heads, hidden = reading.degree("num-attention-heads"), reading.whole("hidden-size")
    width = reading.whole("kv-channels")
    if width is not None and hidden and width * heads != hidden:
        reading.refuse(
            "kv-channels", f"hidden-size / heads is {hidden / heads:g}, and no other width is to be had"
        )
    if "seq-length" in reading.given and "encoder-seq-length" in reading.given:
        reading.refuse("encoder-seq-length", "--seq-length says the same")
    reading.set("training.seq_length", reading.value("seq-length", "encoder-seq-length"), "seq-length")
    _recompute(reading)
    _precision(reading)
    clip = reading.number("clip-grad")
    reading.set("optimizer.clip_grad_norm", clip or None, "clip-grad")
    optimizer = str(reading.value("optimizer"))
    if optimizer == "sgd" and reading.number("sgd-momentum"):
        reading.refuse("optimizer", "SGD has no momentum here: --sgd-momentum 0")
    loads = reading.value("load") is not None
    begins = reading.flag("finetune") or reading.flag("no-load-optim")
    if loads:
        reading.options.append(f"--init-from {reading.value('load')}")
        if not begins:
            reading.note("its optimizer state is not read: --init-from begins with the weights alone", "load")


def _batch(reading: Reading) -> int:
    """Decide layout and batch; return the samples of a step."""
    tensor, pipeline = (reading.degree(f"{name}-model-parallel-size") for name in ("tensor", "pipeline"))
    world = reading.facts.devices or reading.launched
    data = (world or tensor * pipeline) // (tensor * pipeline)
    if world and data * tensor * pipeline != world:
        reading.refuse(
            "tensor-model-parallel-size", f"{world} devices are no multiple of {tensor * pipeline}"
        )
    if world is None:
        reading.note("parallel.data=1: the script does not say how many devices there are; --devices N does")
    data = max(data, 1)
    whole = reading.flag("use-distributed-optimizer") and data > 1
    reading.set("parallel.data", 1 if whole else data)
    reading.set("parallel.sharding", data if whole else 1, "use-distributed-optimizer")
    reading.set("parallel.sharding_stage", int(whole), "use-distributed-optimizer")
    if chunk := reading.whole("num-layers-per-virtual-pipeline-stage"):
        layers = reading.whole("num-layers") or 0
        reading.set(
            "parallel.virtual_pipeline",
            layers // pipeline // chunk or 1,
            "num-layers-per-virtual-pipeline-stage",
        )
    micro = reading.whole("micro-batch-size") or 1
    if "micro-batch-size" not in reading.given:
        reading.refuse("micro-batch-size", "is not given")
    total = reading.whole("global-batch-size") or micro * data
    reading.set("training.micro_batch_size", micro, "micro-batch-size")
    reading.set("training.global_batch_size", total, "global-batch-size")
    return max(total, 1)


def _length(reading: Reading, total: int) -> int:
    """Decide steps and intervals; return the steps."""
    iters, samples = reading.whole("train-iters"), reading.whole("train-samples")
    if (iters is None) == (samples is None):
        reading.refuse("train-iters", "one of --train-iters and --train-samples says the length")
    steps = iters if iters is not None else (samples or 0) // total
    reading.set("training.max_steps", steps, "train-iters" if iters is not None else "train-samples")
    interval = reading.whole("save-interval")
    reading.set("checkpoint.interval", interval or steps, "save-interval")
    batches = reading.whole("eval-iters")
    evaluates = batches is None or batches > 0
    reading.set("evaluation.interval", reading.value("eval-interval") if evaluates else 0, "eval-interval")
    reading.set("evaluation.batches", batches or 1, "eval-iters")
    return steps


def _schedule(reading: Reading, total: int, steps: int) -> None:
    iters, samples = reading.whole("lr-decay-iters"), reading.whole("lr-decay-samples")
    decay = samples // total if samples is not None else iters
    key = "lr-decay-samples" if samples is not None else "lr-decay-iters"
    reading.set("schedule.decay_steps", decay or steps, key)
    fraction = reading.number("lr-warmup-fraction")
    counted = reading.whole("lr-warmup-iters") or (reading.whole("lr-warmup-samples") or 0) // total
    if fraction is not None and counted:
        reading.refuse("lr-warmup-fraction", "--lr-warmup-iters or --lr-warmup-samples says it otherwise")
    if fraction is None:
        reading.set("schedule.warmup_steps", counted, "lr-warmup-iters")
    else:
        reading.set("schedule.warmup_rate", fraction, "lr-warmup-fraction")
    if str(reading.value("lr-decay-style")) == "cosine":
        reading.note("the first update has the rate of step 1 here, and of step 0 there", "lr-decay-style")
    if str(reading.value("lr-decay-style")) == "linear":
        reading.set("schedule.name", "polynomial", "lr-decay-style")
        reading.note(
            "linear from the end of the warm-up is schedule.name=polynomial of power 1", "lr-decay-style"
        )


def _vocabulary(reading: Reading) -> None:
    padded, size = reading.whole("padded-vocab-size"), reading.facts.vocab_size or reading.whole("vocab-size")
    if padded is None and size is None:
        files = [Path(str(reading.value(key))) for key in ("vocab-file",) if reading.value(key) is not None]
        size = next((count for file in files if (count := _entries(file))), None)
    if padded is None and size is None:
        size = reading.ask("vocab_size", "vocab-file", "the tokenizer's size decides the embedding's")
    unit = reading.degree("make-vocab-size-divisible-by") * reading.degree("tensor-model-parallel-size")
    if size is not None:
        size += reading.whole("vocab-extra-ids") or 0
        padded = padded or -(-size // unit) * unit
        reading.note(f"the embedding of {size} tokens has {padded} rows, a multiple of {unit}", "vocab-file")
    if padded is not None:
        reading.set("model.vocab_size", padded, "make-vocab-size-divisible-by")
    folder = reading.value("vocab-file") or reading.value("tokenizer-model")
    if folder is not None:
        reading.set(
            "data.tokenizer", str(Path(str(folder)).parent), reading.key("vocab-file", "tokenizer-model")
        )
        reading.note(
            "data.tokenizer is the folder; its files are vocab.json and merges.txt here", "vocab-file"
        )


def _entries(file: Path) -> int | None:
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(file.read_text("utf-8"))
        return len(content) if isinstance(content, dict) else None
    return None


def _data(reading: Reading) -> None:
    split = reading.value("split")
    reading.set("data.split", "".join(split) if isinstance(split, list) else split, "split")
    path = reading.value("data-path")
    if isinstance(path, list):
        _blend(reading, path)
    elif path is not None:
        reading.set("data.path", path, "data-path")


def _blend(reading: Reading, words: list[Any]) -> None:
    """Take weights and prefixes in turn, or prefixes alone, which weigh the same there."""
    weights = [word for word in words[::2] if re.fullmatch(r"[0-9.eE+-]+", str(word))]
    if len(weights) * 2 == len(words):
        reading.set("data.mixture", " ".join(map(str, words)), "data-path")
    elif weights:
        reading.refuse("data-path", "a weight before each prefix, or before none")
    else:
        reading.set("data.mixture", " ".join(f"1 {word}" for word in words), "data-path")


def _recompute(reading: Reading) -> None:
    granularity = reading.value("recompute-granularity", "checkpoint-granularity")
    words = {"full": "full", "selective": "core_attn"}
    level = words.get(str(granularity)) if granularity is not None else "none"
    if level is None:
        reading.refuse(reading.key("recompute-granularity", "checkpoint-granularity"), "full or selective")
    if reading.flag("checkpoint-activations"):
        level = "full"
    elif reading.flag("recompute-activations"):
        level = "core_attn"
    reading.set(_RECOMPUTE, level or "none", "recompute-granularity")
    key = reading.key("recompute-num-layers", "checkpoint-num-layers")
    if reading.value(key) is not None and reading.whole(key) != 1:
        reading.note("every layer is computed again by itself", key)


def _precision(reading: Reading) -> None:
    half, brain = reading.flag("fp16"), reading.flag("bf16")
    if half and brain:
        reading.refuse("bf16", "--fp16 says otherwise")
    reading.set("precision.compute", "fp16" if half else "bf16" if brain else "fp32", "fp16")
    if half and (set(reading.given) & {"hysteresis", "min-loss-scale"}):
        reading.note("the loss scale is halved at the first overflow, and below 1 too", "hysteresis")


def _same(*values: Any) -> Any:
    return only(*values, why=_GPT2)


SYSTEM = System(
    "Megatron-LM",
    (
        Row("num-layers", to("model.num_layers")),
        Row("hidden-size", to("model.hidden_size")),
        Row("num-attention-heads", to("model.num_attention_heads")),
        Row("max-position-embeddings", to("model.max_position_embeddings")),
        Row("seq-length encoder-seq-length", decides("training.seq_length")),
        Row("ffn-hidden-size", to("model.ffn_hidden_size")),
        Row("kv-channels", decides("model.hidden_size")),
        Row("make-vocab-size-divisible-by", decides("model.vocab_size"), 128),
        Row("vocab-size padded-vocab-size vocab-extra-ids", decides("model.vocab_size")),
        Row("vocab-file tokenizer-model", decides("data.tokenizer", "model.vocab_size")),
        Row("merge-file tokenizer-type", ignored("data.tokenizer finds its own files and kind")),
        Row("layernorm-epsilon norm-epsilon", to("model.layernorm_epsilon")),
        Row("openai-gelu onnx-safe no-bias-gelu-fusion", decides("model.activation")),
        Row("apply-residual-connection-post-layernorm swiglu squared-relu", _same(False)),
        Row("group-query-attention disable-bias-linear", _same(False)),
        Row("num-experts", _same(0, 1)),
        Row("normalization", _same("LayerNorm")),
        Row("position-embedding-type", _same("learned_absolute")),
        Row(
            "untie-embeddings-and-output-weights",
            to("model.tie_word_embeddings", {"true": False, "false": True}),
        ),
        Row("hidden-dropout", to("model.hidden_dropout_prob"), 0.1),
        Row("attention-dropout", to("model.attention_probs_dropout_prob"), 0.1),
        Row("init-method-std", to("model.initializer_range"), 0.02),
        Row(
            "init-method-xavier-uniform data-parallel-random-init",
            refused("weights are drawn N(0, std), the same on all"),
        ),
        Row("micro-batch-size global-batch-size", decides(*_BATCH)),
        Row("rampup-batch-size", refused("a batch has the same size in every step")),
        Row("train-iters train-samples", decides("training.max_steps")),
        Row("exit-interval", to("training.stop_after_steps")),
        Row("exit-duration-in-mins", to("training.max_minutes")),
        Row("log-interval", to("training.log_interval"), 100),
        Row("save-interval", decides("checkpoint.interval")),
        Row("eval-interval", decides("evaluation.interval"), 1000),
        Row("eval-iters", decides("evaluation.batches"), 100),
        Row("save", option("--run {}")),
        Row("load finetune no-load-optim", ignored("no field: --init-from, or --resume of a run of its own")),
        Row(
            "no-load-rng no-save-optim no-save-rng use-checkpoint-args use-checkpoint-opt-param-scheduler "
            "override-opt-param-scheduler",
            ignored("the spec decides a run, and its checkpoints are whole"),
        ),
        Row("optimizer", to("optimizer.name", {"adam": "adamw", "sgd": "sgd"}), "adam"),
        Row("adam-beta1", to("optimizer.beta1"), 0.9),
        Row("adam-beta2", to("optimizer.beta2"), 0.999),
        Row("adam-eps", to("optimizer.epsilon"), 1e-8),
        Row("weight-decay", to("optimizer.weight_decay"), 0.01),
        Row("clip-grad", decides("optimizer.clip_grad_norm"), 1.0),
        Row("sgd-momentum", decides("optimizer.name"), 0.9),
        Row("weight-decay-incr-style", only("constant", why="weight decay is the same in every step")),
        Row("start-weight-decay end-weight-decay", refused("weight decay is the same in every step")),
        Row("lr", to("schedule.max_lr")),
        Row("min-lr", to("schedule.min_lr"), 0.0),
        Row("lr-decay-style", to("schedule.name", _LR), "linear"),
        Row("lr-decay-iters lr-decay-samples", decides("schedule.decay_steps")),
        Row("lr-warmup-fraction", decides("schedule.warmup_rate")),
        Row("lr-warmup-iters lr-warmup-samples", decides("schedule.warmup_steps")),
        Row("lr-warmup-init", only(0, why="a warm-up begins at 0")),
        Row("fp16 bf16", decides("precision.compute")),
        Row("loss-scale", to("precision.loss_scale")),
        Row("initial-loss-scale", to("precision.initial_loss_scale"), 4294967296),
        Row("loss-scale-window", to("precision.loss_scale_window"), 1000),
        Row(
            "min-loss-scale hysteresis",
            ignored("the loss scale is halved at every overflow, without a floor"),
        ),
        Row(
            "fp32-residual-connection no-query-key-layer-scaling apply-query-key-layer-scaling "
            "attention-softmax-in-fp32 accumulate-allreduce-grads-in-fp32 fp16-lm-cross-entropy "
            "attention-backend use-flash-attn transformer-impl use-mcore-models",
            ignored("kernels, and what they add up in, are the backend's"),
        ),
        Row("tensor-model-parallel-size", to("parallel.tensor"), 1),
        Row("pipeline-model-parallel-size", to("parallel.pipeline"), 1),
        Row("sequence-parallel", to("parallel.sequence")),
        Row("num-layers-per-virtual-pipeline-stage", decides("parallel.virtual_pipeline")),
        Row(
            "context-parallel-size expert-model-parallel-size", only(1, why="such a layout is not to be had")
        ),
        Row(
            "pipeline-model-parallel-split-rank standalone-embedding-stage",
            refused("such a layout is not to be had"),
        ),
        Row("model-parallel-size", refused("an old name: --tensor-model-parallel-size")),
        Row("batch-size", refused("an old name: --micro-batch-size")),
        Row("warmup", refused("an old name: --lr-warmup-fraction")),
        Row("use-distributed-optimizer", decides("parallel.sharding", "parallel.sharding_stage")),
        Row(
            "DDP-impl distributed-backend no-contiguous-buffers-in-local-ddp "
            "no-scatter-gather-tensors-in-pipeline use-cpu-initialization local-rank lazy-mpu-init "
            "empty-unused-memory-level distributed-timeout-minutes overlap-grad-reduce overlap-param-gather "
            "tp-comm-overlap",
            ignored("how processes meet is the launcher's and the backend's"),
        ),
        Row(
            "checkpoint-activations checkpoint-granularity recompute-activations recompute-granularity "
            "checkpoint-num-layers recompute-num-layers",
            decides(_RECOMPUTE),
        ),
        Row(
            "checkpoint-method recompute-method distribute-checkpointed-activations "
            "distribute-saved-activations",
            ignored("every layer is computed again by itself"),
        ),
        Row("data-path", decides("data.path")),
        Row("split", decides("data.split"), "969, 30, 1"),
        Row("valid-data-path", to("data.validation_path")),
        Row("train-data-path test-data-path", refused("--data-path and data.split say what is read")),
        Row("data-cache-path", ignored("there are no index files")),
        Row("mock-data", refused("made-up tokens: without data.path a run has text of its own")),
        Row("dataloader-type", only("single", why="samples are a function of the step")),
        Row("reset-position-ids reset-attention-mask", refused("documents in one sample see each other")),
        Row("eod-mask-loss", to("data.mask_end_of_text")),
        Row(
            "data-impl mmap-warmup num-workers no-masked-softmax-fusion no-bias-dropout-fusion "
            "no-persist-layer-norm no-gradient-accumulation-fusion no-async-tensor-model-parallel-allreduce "
            "log-* tensorboard-* wandb-* adlr-* exit-signal-handler inference-batch-times-seqlen-threshold "
            "ckpt-format timing-log-level manual-gc manual-gc-interval",
            ignored("files, logs and kernels, not numbers"),
        ),
        Row("seed", to("training.seed"), 1234),
        Row(
            "mask-prob short-seq-prob mask-type mask-factor decoder-seq-length decoder-num-layers "
            "num-classes img-* ict-* biencoder-* retriever-* indexer-* bert-* dino-* vision-* swin-* "
            "iter-per-epoch patch-dim sample-rate",
            refused("of another model than a GPT"),
        ),
    ),
    _combine,
    fixed={
        "model.layernorm_epsilon": 1e-5,
        "model.tie_word_embeddings": True,
        "optimizer.decay": "matrices",
        "precision.loss_scale": "dynamic",
        "data.mask_end_of_text": False,
        "parallel.sequence": False,
    },
)
