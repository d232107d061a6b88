"""Does a run, or a model, fit in the memory at hand? Asked before a framework is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gptbridge.errors import UsageError
from gptbridge.hookspecs import BackendInfo, MemoryUse
from gptbridge.plan.machine import gpu_count, gpu_memory, memory_of, swap
from gptbridge.plan.memory import (
    Estimate,
    estimate_training,
    opened_bytes,
    peaks_by_recompute,
    with_training,
)
from gptbridge.session import Device, DeviceKind
from gptbridge_specs import RunSpec
from gptbridge_specs.loading import load_model
from gptbridge_specs.presets import preset_names

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a run is estimated to take on each device, and what there is."""

    device: DeviceKind
    estimate: Estimate
    peaks: dict[str, int]  # in bytes, by level of training.recompute
    at_hand: int | None  # bytes; None where only the framework can say

    @property
    def fits(self) -> bool:
        """Whether the run fits, as far as is known."""
        return self.at_hand is None or self.estimate.peak <= self.at_hand

    def facts(self) -> dict[str, object]:
        """Return everything by name, in bytes."""
        estimate = self.estimate
        return {
            "weights_bytes": estimate.weights,
            "gradients_bytes": estimate.gradients,
            "optimizer_bytes": estimate.moments,
            "activations_bytes": estimate.activations,
            "process_bytes": estimate.process,
            "peak_bytes": estimate.peak,
            "peak_bytes_by_recompute": self.peaks,
            "memory_at_hand_bytes": self.at_hand,
            "memory_device": self.device,
            "fits": self.fits,
        }

    def lines(self, recompute: str) -> Iterator[str]:
        """Yield the estimate for a person, in lines of at most 80 characters."""
        estimate = self.estimate
        yield f"memory of one device ({self.device}), estimated:"
        yield f"  weights {size(estimate.weights)}, gradients {size(estimate.gradients)},"
        yield f"  moments {size(estimate.moments)}, activations {size(estimate.activations)},"
        yield f"  process {size(estimate.process)}"
        for level, peak in self.peaks.items():
            yield f"  at its peak {size(peak):>10}  training.recompute={level}" + ", this run" * (
                level == recompute
            )
        if self.at_hand is None:
            yield "  at hand     not known before the framework is loaded"
        else:
            verdict = "" if self.fits else ": this run does not fit and would be refused"
            yield f"  at hand     {size(self.at_hand):>10}{verdict}"


def plan_memory(
    spec: RunSpec, info: BackendInfo, device: Device | None = None, *, ranks: int = 1
) -> MemoryPlan:
    """Return what `spec` takes under the backend of `info`; `device` is known once a framework is loaded.

    The memory at hand is the share of one of the `ranks` that a CPU carries.
    """
    kind = device.kind if device is not None else _likely_device(spec, info)
    use = info.memory.get(kind, MemoryUse())
    at_hand = device.memory if device is not None and device.memory is not None else memory_of(kind)
    if at_hand is not None and kind == "cpu":
        at_hand //= ranks
    return MemoryPlan(kind, estimate_training(spec, use), peaks_by_recompute(spec, use), at_hand)


def require_room(
    spec: RunSpec,
    info: BackendInfo,
    device: Device | None = None,
    overrule: str = "; --force starts it all the same",
    *,
    ranks: int = 1,
) -> None:
    """Raise UsageError where a run cannot fit, with what would, and how to overrule it."""
    plan = plan_memory(spec, info, device, ranks=ranks)
    if plan.fits:
        return
    need = plan.estimate
    who = "the run" if ranks == 1 else f"each of {ranks} ranks"
    raise UsageError(
        f"{who} needs about {size(need.peak)} of {plan.device} memory, and {size(plan.at_hand or 0)} are "
        f"at hand: weights {size(need.weights)}, moments {size(need.moments)}, "
        f"gradients {size(need.gradients)}, activations {size(need.activations)}",
        hint=_fewer(plan, ranks) + _what_fits(spec, info, plan) + overrule,
    )


def require_devices_here(spec: RunSpec, info: BackendInfo, ranks: int, advice: str = "") -> int:
    """Raise UsageError where `ranks` are more than this machine has devices; `advice` ends its hint.

    Return how many of them share one device's memory: all, on a CPU.
    """
    on_gpus = spec.training.device in ("auto", "gpu") and "gpu" in info.hardware
    found = gpu_count() if on_gpus else 0
    if found and ranks > found:
        raise UsageError(
            f"{ranks} devices are asked for on this machine, which has {found}",
            where="parallel",
            hint=f"--devices {found}{advice}",
        )
    return 1 if found else ranks


def require_room_to_open(spec: RunSpec, info: BackendInfo, *, ranks: int = 1) -> None:
    """Raise UsageError where not even the weights of a model that is to be read fit, swap included.

    `ranks` of it share the memory.
    """
    kind = _likely_device(spec, info)
    least, at_hand = ranks * opened_bytes(spec, info.memory.get(kind, MemoryUse())), memory_of(kind)
    room = None if at_hand is None else at_hand + (swap() if kind == "cpu" else 0)
    if room is not None and least > room:
        raise UsageError(
            f"the model needs at least {size(least)} of {kind} memory, and {size(room)} are at hand",
            hint="Open it on a larger machine; convert and inspect need no more than a file's largest tensor",
        )


def size(count: int) -> str:
    """Return bytes as a person reads them."""
    return f"{count / _GIB:,.1f} GiB" if count >= _GIB else f"{count / (1 << 20):,.0f} MiB"


def _likely_device(spec: RunSpec, info: BackendInfo) -> DeviceKind:
    """Return the device of a run; for `auto` a GPU where its driver answers and the backend can use one."""
    wanted = spec.training.device
    if wanted != "auto":
        return wanted
    return "gpu" if "gpu" in info.hardware and gpu_memory() is not None else "cpu"


def _fewer(plan: MemoryPlan, ranks: int) -> str:
    fitting = ranks * (plan.at_hand or 0) // plan.estimate.peak
    return f"{fitting} of them would fit. " if ranks > 1 and fitting else ""


def _what_fits(spec: RunSpec, info: BackendInfo, plan: MemoryPlan) -> str:
    """Return the smallest changes that would make the run fit: micro-batch, recompute, or the model."""
    use, room = info.memory.get(plan.device, MemoryUse()), plan.at_hand or 0

    def peak(changed: RunSpec) -> int:
        return estimate_training(changed, use).peak

    micros = [n for n in range(spec.micro_batch_size - 1, 0, -1) if spec.micro_batch_size % n == 0]
    smaller = {n: with_training(spec, micro_batch_size=n) for n in micros}
    ways = [
        *((f"-o training.micro_batch_size={n}", one) for n, one in smaller.items()),
        ("-o training.recompute=full", with_training(spec, recompute="full")),
    ]
    found = [(words, peak(one)) for words, one in ways if peak(one) <= room]
    best = [next((w for w in found if key in w[0]), None) for key in ("micro", "recompute")]
    if words := [f"{way[0]} needs {size(way[1])}" for way in best if way is not None]:
        return " or ".join(words)
    least = with_training(spec, micro_batch_size=1, recompute="full")
    if peak(least) <= room:
        both = "-o training.micro_batch_size=1 -o training.recompute=full"
        return f"{both} needs {size(peak(least))}"
    return _smaller_preset(least, use, room)


def _smaller_preset(spec: RunSpec, use: MemoryUse, room: int) -> str:
    """Return the largest model preset that could be trained so, with one sample at a time."""
    fitting: dict[str, int] = {}
    for name in preset_names("models"):
        model = load_model(name)
        if model.max_position_embeddings >= spec.training.seq_length:
            peak = estimate_training(spec.model_copy(update={"model": model}), use).peak
            if peak <= room:
                fitting[name] = peak
    if not fitting:
        return "No model preset fits; shorter samples (training.seq_length) and fewer layers need less"
    name = max(fitting, key=lambda name: fitting[name])
    return (
        f"Take a smaller model, such as -o model={name} with -o training.micro_batch_size=1 "
        f"-o training.recompute=full ({size(fitting[name])}), or a larger machine"
    )
