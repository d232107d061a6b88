"""The same GPT by Hugging Face Trainer: GPT2LMHeadModel, its defaults, the workload of `train.py`.

`python benchmarks/hf_trainer.py --steps 20` prints one JSON line; see workload.py.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
import transformers
from workload import (
    BETAS,
    CLIP,
    EPSILON,
    LEARNING_RATE,
    WARM_UP,
    WEIGHT_DECAY,
    Clock,
    Workload,
    initial_weights,
    read_arguments,
    report,
)


def build(workload: Workload) -> Any:
    """Return GPT2LMHeadModel with gptbridge's initial weights, so that the losses can be compared."""
    config = transformers.GPT2Config(
        vocab_size=workload.vocab,
        n_embd=workload.hidden,
        n_layer=workload.layers,
        n_head=workload.heads,
        n_positions=workload.seq,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config)
    weights = initial_weights(workload.model)
    model.transformer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model


def samples(workload: Workload) -> list[dict[str, Any]]:
    """Return the samples in the order of training; `shift_labels` are labels that need no more shift."""
    return [
        {"input_ids": row, "labels": row, "shift_labels": after}
        for inputs, labels in workload.batches()
        for row, after in zip(inputs.astype("int64"), labels.astype("int64"), strict=True)
    ]


class Timer(transformers.TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.clock = Clock()
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WARM_UP:
            self.clock = Clock()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def main() -> None:
    workload = read_arguments(argparse.ArgumentParser(description=__doc__))
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=WARM_UP + workload.steps,
            per_device_train_batch_size=workload.batch,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            adam_epsilon=EPSILON,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=CLIP,
            bf16=workload.precision == "bf16",
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
        )
        timer = Timer()
        trainer = transformers.Trainer(
            build(workload), arguments, train_dataset=samples(workload), callbacks=[timer]
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    report(workload, timer.clock, timer.losses)


if __name__ == "__main__":
    main()
