"""Models of other families: refused by the name that the checkpoint itself gives, not for a tensor's name."""

from __future__ import annotations

from pathlib import Path

from gptbridge.errors import BadInput, printable
from gptbridge.files import read_json
from gptbridge.weights.configs.rows import Switch, Written
from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.registry import known_dialects
from gptbridge.weights.formats import WeightFile
from gptbridge.weights.opening.configuration import read_inside

_KIND = "model_type"  # where config.json says the family, whoever wrote it


def refuse_other_family(root: Path, weights: WeightFile, dialect: Dialect | None) -> None:
    """Raise BadInput if what lies in the file of the weights, or config.json beside it, is of no GPT.

    `dialect` is that of some of the tensors, None where not one is known.
    """
    dialects = known_dialects().dialects
    for asked in (dialect,) if dialect else dialects:
        read_inside(weights.tree, asked.config, weights.path)
    config = root / "config.json"
    if (dialect and not _kinds(dialect)) or not config.is_file():
        return
    kind, known = read_json(config).get(_KIND), sorted(set().union(*map(_kinds, dialects)))
    if isinstance(kind, str) and kind not in known:
        raise BadInput(f"{_KIND} is {printable(kind, 60)}", where=config, allowed=", ".join(known))


def _kinds(dialect: Dialect) -> set[str]:
    """Return the families that the dialect's config.json says."""
    return {
        row.only if isinstance(row, Switch) else row.value
        for row in dialect.config.rows
        if isinstance(row, Switch | Written) and row.key == _KIND
    }
