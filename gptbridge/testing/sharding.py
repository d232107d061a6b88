"""The kit's tests of shards: what a backend holds of each weight, and how it is read and written."""

from __future__ import annotations

import numpy as np
import pytest

from gptbridge.session import MOMENTS, Kind
from gptbridge.testing import cases
from gptbridge.testing.comparison import require
from gptbridge.testing.harness import MODELS, Harness
from gptbridge.weights.architecture import parameters, shapes

KINDS: tuple[Kind, ...] = ("weight", *MOMENTS)


class ShardTests(Harness):
    """Shards follow the architecture table, and refuse what does not fit."""

    @pytest.mark.parametrize("model", MODELS)
    def test_shards_follow_the_architecture(self, model: str) -> None:
        """One process holds each weight whole, once, in the table's order; so with gradients and moments."""
        spec = self._spec(model)
        table = [(p.name, p.axes) for p in parameters(spec.model)]
        trainer = self._start(spec, cases.weights(spec.model))
        require(not trainer.shards("gradient"), "there are gradients before accumulate()")
        trainer.accumulate(cases.batch(spec.model))
        moments = MOMENTS if spec.optimizer.name == "adamw" else ()
        for kind in ("weight", "gradient", *moments):
            shards = trainer.shards(kind)
            require([(s.name, s.axes) for s in shards] == table, f"shards({kind!r}) are not the table's")
            require(all(shard.owned for shard in shards), f"a shard of {kind!r} belongs to nobody")
            found = {shard.name: shard.shape for shard in shards}
            require(found == shapes(spec.model), f"shards({kind!r}) are not whole")
        require(moments or not trainer.shards("exp_avg"), "SGD has no moments")

    @pytest.mark.parametrize("kind", KINDS)
    def test_wrong_shapes_are_refused(self, kind: Kind) -> None:
        """`write` raises a ValueError that names the weight, and leaves it as it was."""
        spec = self._spec("gelu_erf-untied")
        trainer = self._start(spec, cases.weights(spec.model))
        for shard in trainer.shards(kind):
            before = shard.read()
            for what, wrong in (("a cut array", before[:-1]), ("one more axis", before[None])):
                try:
                    shard.write(wrong)
                except ValueError as refusal:
                    require(shard.name in str(refusal), f"the error names no {shard.name}: {refusal}")
                else:
                    raise AssertionError(f"{shard.name} accepts {what}")
            require(np.array_equal(shard.read(), before), f"{shard.name} changed")

    def test_a_shard_is_a_copy(self) -> None:
        """What `read` returns does not change with the weight, nor the weight with it."""
        spec = self._spec("gelu_tanh-tied")
        shard = self._start(spec, cases.weights(spec.model)).shards()[0]
        before = shard.read()
        kept = before.copy()
        before += 1
        require(np.array_equal(shard.read(), kept), "what was read is the weight's own memory")
        shard.write(before)
        before += 1
        require(
            np.array_equal(shard.read(), kept + 1), "an array that was written is the weight's own memory"
        )
