"""Answer requests about Hugging Face models, one JSON line each, so that torch is imported only once.

{"save": FOLDER, "form": one of FORMS, "ids": ROWS} saves a small random GPT-2; {"open": FOLDER,
"classifier": bool, "ids": ROWS} opens one. Both compute the logits of these tokens into
FOLDER/logits.npy; the answer is a JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    logging,
)

logging.set_verbosity_error()
logging.disable_progress_bar()
CONFIG = GPT2Config(vocab_size=61, n_embd=48, n_layer=4, n_head=4, n_inner=96, n_positions=20)


def random_model() -> GPT2LMHeadModel:
    torch.manual_seed(5)
    model = GPT2LMHeadModel(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def save_bin(model: GPT2LMHeadModel, folder: Path, **options: Any) -> None:
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin", **options)


FORMS: dict[str, Callable[[GPT2LMHeadModel, Path], None]] = {
    "safetensors": lambda model, folder: model.save_pretrained(folder),
    "shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="100KB"),
    "zip": save_bin,
    "legacy": lambda model, folder: save_bin(model, folder, _use_new_zipfile_serialization=False),
    "bfloat16": lambda model, folder: model.to(torch.bfloat16).save_pretrained(folder),
}


def compute(model: Any, ids: list[list[int]], folder: Path) -> None:
    with torch.no_grad():
        np.save(folder / "logits.npy", model.eval().float()(torch.tensor(ids)).logits.numpy())


def answer(request: dict[str, Any]) -> dict[str, Any]:
    folder = Path(request.get("save") or request["open"])
    if "save" in request:
        folder.mkdir(parents=True)
        model = random_model()
        FORMS[request["form"]](model, folder)
        compute(model, request["ids"], folder)
        return {}
    kind = AutoModelForSequenceClassification if request["classifier"] else AutoModelForCausalLM
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    compute(model, request["ids"], folder)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return {
        "missing": sorted(set(report["missing_keys"]) - tied),
        "unexpected": sorted(report["unexpected_keys"]),
        "dtype": str(model.dtype),
    }


def main() -> None:
    replies = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)


main()
