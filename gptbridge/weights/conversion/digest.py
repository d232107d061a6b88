"""The digest of a checkpoint's canonical weights."""

from __future__ import annotations

import hashlib

from gptbridge.weights.architecture import weight_axes
from gptbridge.weights.conversion.streaming import SLAB_ITEMS
from gptbridge.weights.layouts.boxes import shape_of, slabs
from gptbridge.weights.layouts.stored import StoredAxes
from gptbridge.weights.opening import Opened


def digest(opened: Opened) -> str:
    """Return the SHA-256 of the canonical weights: equal for equal weights in any dialect and split.

    It covers a classifier's head, and an adapter that is kept apart.
    """
    total = hashlib.sha256()
    weights, whole = opened.all_weights, opened.whole
    factors = opened.adapter.weights if opened.adapter else {}
    for name in (*opened.names, *sorted(factors)):
        weight = weights[name]
        order, box = weight_axes(name), weight.whole(whole)
        total.update(f"{name} {weight.dtype} {shape_of(box, order)}\n".encode())
        for slab in slabs([box], StoredAxes((order,)), SLAB_ITEMS):
            total.update(weight.read(slab[0], order).data)
    return total.hexdigest()
