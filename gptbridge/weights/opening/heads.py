"""The heads of a checkpoint: one that only repeats the embedding, and a classifier's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gptbridge.errors import BadInput, printable
from gptbridge.weights.architecture import weight_axes
from gptbridge.weights.canonical.weight import CanonicalWeight
from gptbridge.weights.configs.table import ConfigFacts
from gptbridge.weights.layouts.boxes import slabs
from gptbridge.weights.layouts.stored import StoredAxes

_HEADS = {"lm_head.weight", "score.weight"}
_COMPARED_ITEMS = 1 << 17


def drop_tied_head(
    weights: dict[str, CanonicalWeight], sizes: Mapping[str, int], configured: ConfigFacts, where: object
) -> bool:
    """Remove a head that only repeats the embedding; tell whether the model's head is tied."""
    head = weights.get("lm_head.weight")
    if head is None:
        return True
    if _equal(head, weights["wte.weight"], sizes):
        del weights["lm_head.weight"]
        return True
    if configured.fields.get("tie_word_embeddings", False):
        raise BadInput(
            f"{printable(configured.where)} says tie_word_embeddings, but the head is not the embedding",
            where=where,
        )
    return False


def without_head(weights: Mapping[str, CanonicalWeight], configured: ConfigFacts) -> Iterator[str]:
    """Yield that the configuration says a head of its own, and the weights have none."""
    if configured.fields.get("tie_word_embeddings") is False and not weights.keys() & _HEADS:
        yield (
            f"{printable(configured.where)} says a head of its own (not tied to the embedding), "
            "but the weights hold none: the embedding is taken for it"
        )


def _equal(first: CanonicalWeight, second: CanonicalWeight, sizes: Mapping[str, int]) -> bool:
    """Tell whether two weights of the same axes hold the same bytes; copies a slab of each at a time."""
    order = weight_axes(first.name)
    return first.dtype == second.dtype and all(
        first.read(slab[0], order).tobytes() == second.read(slab[0], order).tobytes()
        for slab in slabs([first.whole(sizes)], StoredAxes((order,)), _COMPARED_ITEMS)
    )


def check_labels(
    weights: Mapping[str, CanonicalWeight], sizes: Mapping[str, int], configured: ConfigFacts, where: object
) -> None:
    """Refuse a configuration of a classifier that has another number of classes than the head."""
    if "score.weight" in weights and configured.num_labels not in (None, sizes["c"]):
        raise BadInput(
            f"{printable(configured.where)} says {configured.num_labels} classes, "
            f"but score.weight has {sizes['c']}",
            where=where,
        )
