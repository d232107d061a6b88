"""What a user says of a checkpoint, because it does not say so itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptbridge.weights.configs.table import ConfigFacts
from gptbridge.weights.dialects.registry import find_dialect
from gptbridge_specs import ModelSpec, load_model


@dataclass(frozen=True, slots=True)
class Hints:
    """The dialect, fields of the model, the strategy file of ranks or the folder of them, LoRA's alpha.

    `base` is the checkpoint that an adapter in a folder of its own stands beside.
    """

    dialect: str | None = None
    model: ConfigFacts = field(default_factory=ConfigFacts)
    strategy: Path | None = None
    lora_alpha: float | None = None
    base: Path | None = None

    def fields(self) -> dict[str, Any]:
        """Return them for a process in another folder, as JSON knows them."""
        paths = {"strategy": self.strategy, "base": self.base}
        return asdict(self) | {name: path and str(path.absolute()) for name, path in paths.items()}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Hints:
        """Return the hints of which `fields` came."""
        paths = {name: fields[name] and Path(fields[name]) for name in ("strategy", "base")}
        return cls(**{**fields, "model": ConfigFacts(**fields["model"]), **paths})


def hints_of(
    *,
    dialect: str | None = None,
    model: str | ModelSpec | None = None,
    num_attention_heads: int | None = None,
    strategy_file: str | Path | None = None,
    lora_alpha: float | None = None,
    base: str | Path | None = None,
) -> Hints:
    """Return the hints of a user who names dialect and model: `model` is a preset or a YAML file, or a spec.

    UsageError, or SpecError for the model, where there is none of that name.
    """
    spec = load_model(model) if isinstance(model, str) else model
    fields = spec.model_dump() if spec else {}
    if num_attention_heads is not None:
        fields["num_attention_heads"] = num_attention_heads
    where = f"--model {model}" if isinstance(model, str) else "--model" if model else "--num-attention-heads"
    return Hints(
        find_dialect(dialect).name if dialect else None,
        ConfigFacts(fields, where),
        Path(strategy_file) if strategy_file is not None else None,
        lora_alpha,
        Path(base) if base is not None else None,
    )
