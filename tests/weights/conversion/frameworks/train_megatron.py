"""Make checkpoints what Megatron-LM's own training leaves: state beside the weights, and virtual stages.

    python train_megatron.py FOLDER [VIRTUAL]

rewrites the ranks' files below FOLDER. With VIRTUAL, each P / VIRTUAL pipeline ranks that follow one another
at that distance become one, which holds their models as model0, model1, ... (megatron/checkpointing.py).
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def training_state() -> dict[str, Any]:
    """What old and new releases save beside the model."""
    weight = torch.nn.Parameter(torch.ones(3, 2))
    weight.grad = torch.ones(3, 2)
    optimizer = torch.optim.AdamW([weight])
    optimizer.step()
    generators = {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
    }
    return {
        "iteration": 1000,
        "optimizer": {
            "optimizer": optimizer.state_dict(),
            "grad_scaler": {"scale": torch.tensor([65536.0]), "hysteresis_tracker": 2},
            "fp32_from_fp16_params": [[weight.detach()]],
        },
        "opt_param_scheduler": {"max_lr": 1e-4, "num_steps": 1000},
        "lr_scheduler": {"start_lr": 1e-4},
        "rng_state": [generators],
        **generators,
    }


def main() -> None:
    root, virtual = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    files = sorted(root.glob("release/*/model_optim_rng.pt"))
    ranks = [torch.load(file, weights_only=False) for file in files]
    kept = len(files) // virtual
    for number, file in enumerate(files):
        if number >= kept:
            file.unlink()
            file.parent.rmdir()
            continue
        content = {**ranks[number], **training_state()}
        if virtual > 1:
            del content["model"]
            content |= {f"model{chunk}": ranks[number + chunk * kept]["model"] for chunk in range(virtual)}
        torch.save(content, file)


main()
