"""Every layout trains as one process does: the table of layouts, and how a backend's are run and compared."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.hookspecs import Launch
from gptbridge.plugins.backend import load_backend
from gptbridge.testing.comparison import distance
from gptbridge.weights.architecture import shapes, sizes, weight_axes
from gptbridge.weights.held import held_names
from gptbridge_specs import RunSpec

Arrays = dict[str, NDArray[Any]]
STEPS = 3
PATIENCE = 480  # seconds, of all cases of one number of ranks
# A vocabulary, a length and heads that are odd where a layout allows it.
MODEL = {
    "vocab_size": 67,
    "hidden_size": 48,
    "num_layers": 4,
    "num_attention_heads": 6,
    "ffn_hidden_size": 56,
    "max_position_embeddings": 13,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
ADAMW = {"name": "adamw", "clip_grad_norm": 1.0, "weight_decay": 0.1}
# Classes that are learnt by adapters and a head, beside weights that are not.
TASK = {
    "name": "classification",
    "num_labels": 3,
    "lora": {"rank": 2, "alpha": 4.0, "dropout": 0.1, "targets": ["q", "v", "out", "fc", "proj"]},
}
PACKED = {"name": "instruction", "records": {"packed": True}}
SGD = {"name": "sgd", "clip_grad_norm": None, "weight_decay": 0.0}


def run_spec(parallel: Mapping[str, Any], **parts: Mapping[str, Any]) -> RunSpec:
    """Return a small run on CPU, its 8 samples in 4 micro-batches."""
    content: dict[str, Any] = {
        "model": {**MODEL, **parts.pop("model", {})},
        "training": {
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "seq_length": 11,
            "device": "cpu",
            **parts.pop("training", {}),
        },
        "optimizer": ADAMW,
        "schedule": {"max_lr": 1e-3},
        "parallel": parallel,
        **parts,
    }
    return RunSpec.model_validate(content)


def run(
    backend: str,
    cases: Mapping[str, RunSpec],
    folder: Path,
    *,
    broken: Mapping[str, str] | None = None,
    read: Collection[str] | None = None,
) -> dict[str, list[Arrays]]:
    """Train all `cases`, of one number of ranks, in one process group; return what each rank wrote.

    In a case that `broken` names, its function `module:name` does nothing, or is `=module:name`: what a
    test must notice. The models of the cases in `read`, by default of all, are read in the end.
    """
    (ranks,) = {spec.parallel.world_size for spec in cases.values()}
    job = folder / f"job-{ranks}.json"
    content = {name: spec.model_dump(mode="json") for name, spec in cases.items()}
    words = {"backend": backend, "steps": STEPS, "broken": broken or {}, "cases": content}
    job.write_text(json.dumps({**words, "read": list(cases if read is None else read)}))
    command = [sys.executable, "-m", "tests.parallel.rank", str(job)]
    if ranks > 1:
        launch = Launch(processes=ranks, logs=folder / "logs", port=free_port())
        command = load_backend(backend).launch_command(launch, command)
    finish(command, folder)
    return {name: [dict(np.load(folder / f"{name}-{rank}.npz")) for rank in range(ranks)] for name in cases}


def finish(command: list[str], folder: Path, *, timeout: float = PATIENCE) -> None:
    """Run a command to its end; AssertionError with what its ranks printed where it fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        printed = f"not done within {timeout} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    logs = [path.read_text(errors="replace")[-2000:] for path in folder.rglob("logs/**/*") if path.is_file()]
    assert process.returncode == 0, "\n".join([printed, *logs])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def joined(spec: RunSpec, ranks: list[Arrays], kind: str) -> Arrays:
    """Return whole tensors from what the ranks own; AssertionError where a number has no owner, or two."""
    whole, of_all = sizes(spec.model, spec.task), shapes(spec.model, spec.task)
    held = {name: of_all[name] for name in held_names(spec.model, task=spec.task, trained=kind != "weight")}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in held.items()}
    owners = {name: np.zeros(shape, int) for name, shape in held.items()}
    for logged in ranks:
        for key in logged:
            if key.startswith(kind + " ") and key.endswith(" box"):
                said = json.loads(str(logged[key]))
                order = weight_axes(said["name"])
                place = tuple(slice(*said["box"][letter]) for letter in order.letters)
                spread = order.spread(tensors[said["name"]], whole)
                content = logged[key.removesuffix(" box")].reshape(spread[place].shape)
                if said["owned"]:
                    spread[place] = content
                    order.spread(owners[said["name"]], whole)[place] += 1
    assert all((count == 1).all() for count in owners.values())
    return tensors


# How far a layout may be from one process, relative to the largest value; the key biases are left out.
CLOSE = {"loss": 1e-5, "grad_norm": 1e-5, "exp_avg": 1e-4, "exp_avg_sq": 1e-4}
PLAIN = {"loss": 1e-5, "grad_norm": 1e-5, "weight": 1e-6}  # SGD without clipping: the sharpest of all


def differences(spec: RunSpec, ranks: list[Arrays], alone: Arrays) -> dict[str, float]:
    """Return how far the ranks of a layout together are from one process: largest relative differences."""
    found: dict[str, float] = {
        name: _apart(ranks[0][name], alone[name])
        for name in ("loss", "grad_norm", "logits", "token_losses", "decoded")
        if name in ranks[0]
    }
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        if f"{kind} 0" in alone:
            found[kind] = distance(*(_compared(joined(spec, held, kind)) for held in (ranks, [alone])))
    return found


def _apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


def _compared(tensors: Arrays) -> Arrays:
    return {name: array for name, array in tensors.items() if not name.endswith("attn.k.bias")}
