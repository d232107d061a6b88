"""A checkpoint does not know how many ranks wrote it, and saving lets the steps go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptbridge.checkpoint.manifest import verify
from gptbridge.checkpoint.saving import Saver
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.errors import RunFailed
from gptbridge.process.place import Place, places
from gptbridge.session import Kind, Shard
from gptbridge.weights.architecture import sizes
from gptbridge.weights.held import HeldTensor, held_names
from gptbridge.weights.layouts.gpt2 import gpt2_in_memory
from gptbridge.weights.shards import load, shards_of
from gptbridge_specs import RunSpec
from gptbridge_specs.run import CheckpointSpec, ParallelSpec
from tests.checkpoint.conftest import TOKENIZER, opened_run, reads_of, spec_of, state_of
from tests.weights.test_held import Arrays

SPEC = spec_of(num_layers=4, num_attention_heads=6, vocab_size=29)
Held = Callable[[Kind], Sequence[Shard]]


def held_by(place: Place, spec: RunSpec, step: int, *, sliced: bool) -> Held:
    """Return the shards of one rank, filled with what `step` seeds."""
    model, layout = spec.model, gpt2_in_memory("test", out_in=True)

    def shards(kind: Kind) -> Sequence[Shard]:
        natives = layout.natives(held_names(model, place), model.num_layers)
        held = [HeldTensor(native, sizes(model), place, sliced) for native in natives]
        tensors = {tensor.native.name: np.full(tensor.shape, np.nan, np.float32) for tensor in held}
        found = shards_of(model, layout, tensors, Arrays(), place, sliced=sliced)
        load(found, reads_of(spec, step)[kind])
        return found

    return shards


def save(folder: Path, ranks: Sequence[Held], step: int = 20, *, room: int = 1 << 30) -> list[str]:
    """Save as `ranks` do, each a thread; return what went wrong."""
    problems = []

    def one(rank: int) -> None:
        saver = Saver(CheckpointStore(folder), CheckpointSpec(), lambda: room, rank, len(ranks))
        try:
            saver.begin(state_of(SPEC, step), TOKENIZER, ranks[rank])
            saver.finish()
        except RunFailed as error:
            problems.append(str(error))
        saver.close()

    with ThreadPoolExecutor(len(ranks)) as threads:
        list(threads.map(one, range(len(ranks))))
    return problems


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "step-00000020").iterdir()}


@settings(max_examples=12, deadline=None)
@given(
    tensor=st.sampled_from([1, 2, 3]),
    pipeline=st.sampled_from([1, 2]),
    sharding=st.sampled_from([1, 2, 5]),
    data=st.sampled_from([1, 2]),
    sliced=st.booleans(),
)
def test_any_layout_writes_the_bytes_of_one_process(
    tmp_path_factory: pytest.TempPathFactory,
    tensor: int,
    pipeline: int,
    sharding: int,
    data: int,
    sliced: bool,
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    parallel = ParallelSpec(tensor=tensor, pipeline=pipeline, sharding=sharding, data=data)
    held = [held_by(place, SPEC, 20, sliced=sliced) for place in places(parallel)]
    assert save(folder / "many", held) == []
    assert save(folder / "one", [held_by(Place(), SPEC, 20, sliced=False)], room=0) == []
    assert files_of(folder / "many") == files_of(folder / "one")
    verify(folder / "many" / "step-00000020")
    # The control: other numbers are other bytes.
    assert save(folder / "other", [held_by(Place(), SPEC, 21, sliced=False)]) == []
    assert files_of(folder / "other") != files_of(folder / "one")


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_that_fails_leaves_no_checkpoint(tmp_path: Path, rank: int) -> None:
    held = [held_by(place, SPEC, 20, sliced=False) for place in places(ParallelSpec(tensor=2))]

    def broken(kind: Kind) -> list[Shard]:
        shards = list(held[rank](kind))
        shards[0] = replace(shards[0], read=lambda: np.full(shards[0].shape, np.nan, np.float32))
        return shards

    ranks = [broken if number == rank else one for number, one in enumerate(held)]
    problems = save(tmp_path, ranks)
    assert len(problems) == 2
    assert all("wte.weight holds NaN or infinity" in problem for problem in problems)
    assert not CheckpointStore(tmp_path).steps()
    CheckpointStore(tmp_path).clean()
    assert not list(tmp_path.iterdir())


def test_training_goes_on_while_a_copy_is_written(tmp_path: Path) -> None:
    """What is saved is the run as it stood, though its tensors change before they are on the disk."""
    held = held_by(Place(), SPEC, 20, sliced=False)
    tensors = {kind: held(kind) for kind in ("weight", "exp_avg", "exp_avg_sq")}
    asked, go_on = threading.Event(), threading.Event()

    class Slow(CheckpointStore):
        def save(self, *words: object) -> Path:
            asked.set()
            go_on.wait(30)
            return super().save(*words)  # type: ignore[arg-type]

    for name, room in (("beside", 1 << 30), ("at once", 0), ("last", 1 << 30)):
        saver = Saver(Slow(tmp_path / name), CheckpointSpec(), lambda room=room: room, 0, 1)  # type: ignore[misc]
        if name != "beside":
            go_on.set()
        last = name == "last"
        assert saver.begin(state_of(SPEC, 20), TOKENIZER, tensors.__getitem__, wait=last) is None
        assert asked.wait(30)
        assert (saver.done() is None) == (name == "beside")
        load(tensors["weight"], reads_of(SPEC, 21)["weight"])
        go_on.set()
        saved = saver.finish()
        assert saved is None or saved.path == tmp_path / name / "step-00000020"
        saver.close()
        load(tensors["weight"], reads_of(SPEC, 20)["weight"])
        for event in (asked, go_on):
            event.clear()
    assert files_of(tmp_path / "beside") == files_of(tmp_path / "at once") == files_of(tmp_path / "last")
    with opened_run(tmp_path / "beside" / "step-00000020") as opened:
        name, box = "wte.weight", {"v": (0, 29), "i": (0, 12)}
        assert np.array_equal(opened.weights.read(name, box), reads_of(SPEC, 20)["weight"](name, box))


@pytest.mark.parametrize("asked", [True, False])
def test_a_copy_is_taken_beside_what_waits_for_it(tmp_path: Path, *, asked: bool) -> None:
    """A saver that is asked before tensors change lets a step begin before it has read them."""
    held, read = held_by(Place(), SPEC, 20, sliced=False), threading.Event()

    def slow(kind: Kind) -> list[Shard]:
        return [replace(shard, read=partial(read_late, shard)) for shard in held(kind)]

    def read_late(shard: Shard) -> NDArray[np.float32]:
        assert read.wait(30)
        return shard.read()

    saver = Saver(CheckpointStore(tmp_path), CheckpointSpec(), lambda: 1 << 30, 0, 1, asked=asked)
    with ThreadPoolExecutor(2) as threads:
        begun = threads.submit(saver.begin, state_of(SPEC, 20), TOKENIZER, slow)
        if asked:
            begun.result(30)
        waited = threads.submit(saver.wait_for_copy) if asked else begun
        with pytest.raises(TimeoutError):
            waited.result(0.2)
        read.set()
        waited.result(30)
    assert saver.finish() is not None
    saver.close()
    with opened_run(tmp_path / "step-00000020") as opened:
        name, box = "wte.weight", {"v": (0, 29), "i": (0, 12)}
        assert np.array_equal(opened.weights.read(name, box), reads_of(SPEC, 20)["weight"](name, box))
