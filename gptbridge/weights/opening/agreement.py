"""The model that a checkpoint's tensors, its configuration and the user's hints say together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from gptbridge.errors import BadInput, printable
from gptbridge.weights.configs.model import build_model
from gptbridge.weights.configs.table import ConfigFacts
from gptbridge.weights.layouts.matching import RANKS_HINT
from gptbridge.weights.opening.identifying import Identified
from gptbridge_specs import ModelSpec


def agreed_model(
    what: Identified, sizes: Mapping[str, int], configured: ConfigFacts, hinted: ConfigFacts, where: Path
) -> ModelSpec:
    """Return the model; BadInput where two disagree, UsageError for what none of them says."""
    stored = {
        "hidden_size": sizes["i"],
        "num_layers": what.match.num_layers,
        "max_position_embeddings": sizes["t"],
        "ffn_hidden_size": sizes["f"],
    }
    facts = configured.merged(hinted)
    _require_agreement(configured, hinted, where)
    for name, value in stored.items():
        if facts.fields.get(name, value) not in (value, None):
            source = hinted if name in hinted.fields else configured
            raise BadInput(
                f"{printable(source.where)} says {name}={printable(facts.fields[name])}, "
                f"but the tensors say {value}",
                where=where,
                hint=RANKS_HINT if name == "ffn_hidden_size" else None,
            )
    rows = sizes["v"]
    vocabulary = facts.fields.get("vocab_size", rows)
    padded = what.dialect.padded or "vocab_size" in hinted.fields
    if vocabulary != rows and not (padded and type(vocabulary) is int and 0 < vocabulary < rows):
        raise BadInput(
            f"{printable(facts.where)} says vocab_size={printable(vocabulary)}, "
            f"but the embedding has {rows} rows",
            where=where,
        )
    fields = {**configured.assumed, **facts.fields, **stored, "vocab_size": vocabulary}
    if len(what.match.layout.activations) == 1:
        (fields["activation"],) = what.match.layout.activations  # whatever the configuration says
    return build_model(fields, where)


def _require_agreement(configured: ConfigFacts, hinted: ConfigFacts, where: Path) -> None:
    """Refuse a number of heads that the user and the checkpoint's own configuration say differently."""
    name = "num_attention_heads"
    own, other = configured.fields.get(name), hinted.fields.get(name)
    if None not in (own, other) and own != other:
        raise BadInput(
            f"{printable(configured.where)} says {name}={printable(own)}, but {hinted.where} says {other}",
            where=where,
            hint="Leave the option out, or correct the configuration",
        )


def overruled(configured: ConfigFacts, hinted: ConfigFacts) -> Iterator[str]:
    """Yield what the user says otherwise than the checkpoint's own configuration, where that may be."""
    for name in ("activation", "layernorm_epsilon"):
        own, other = configured.fields.get(name), hinted.fields.get(name)
        if None not in (own, other) and own != other:
            file, taken = printable(configured.where), f"{hinted.where}'s {other} is taken"
            yield f"{file} means {name}={printable(own)}: {taken}"


def assumed(
    what: Identified, model: ModelSpec, configured: ConfigFacts | None, hinted: ConfigFacts
) -> Iterator[str]:
    """Yield what was taken for granted of the model; `configured` is None where there is no configuration."""
    otherwise = "taken, --model PRESET|FILE says otherwise"
    if configured is not None:
        where, left_open = printable(configured.where), configured.assumed.items()
        yield from (
            f"{where} does not say {name}: {value} {otherwise}"
            for name, value in left_open
            if name not in hinted.fields
        )
    elif "activation" not in hinted.fields:
        fixed = len(what.match.layout.activations) == 1  # its software knows one alone
        fields = ("layernorm_epsilon",) if fixed else ("activation", "layernorm_epsilon")
        values = " and ".join(f"{name}={getattr(model, name)}" for name in fields)
        yield f"no configuration beside the weights: {values} {otherwise}"
