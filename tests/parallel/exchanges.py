"""What 4 ranks of the Paddle backend exchange: groups made late, messages that cross, parts of unlike sizes.

`python -m tests.parallel.exchanges` under paddle.distributed.launch; a wrong result ends it with an error.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from gptbridge.plugins.backend import load_backend
from gptbridge.weights.architecture import count_parameters
from tests.parallel import layouts, rank

backend = load_backend("paddle")
world = backend.open_trainer(layouts.run_spec({"data": 4}))[2]

import paddle  # noqa: E402
import paddle.distributed as dist  # noqa: E402

from gptbridge_paddle import collectives  # noqa: E402
from gptbridge_paddle.groups import Group, group_of  # noqa: E402
from gptbridge_paddle.session import PaddleTrainer  # noqa: E402

PAIRS = [(0, 1), (1, 2), (2, 3), (3, 0)]


def check(found: paddle.Tensor, expected: object) -> None:
    np.testing.assert_array_equal(found.numpy(), np.asarray(expected, np.float32))


def ranks_that_come_late() -> None:
    """Groups are made in turn by ranks that differ in when they come."""
    for number in range(3):
        time.sleep(0.05 * ((world.rank + number) % 4))
        for lists in ([[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 1, 2, 3]]):
            group = group_of(lists, f"late {number}")
            assert group is not None
            check(collectives.all_reduce(paddle.to_tensor([float(world.rank)]), group), [sum(group.ranks)])


def pair_of(rank: int) -> tuple[Group, Group]:
    """Return the pair in which `rank` is first, and the one in which it is second."""
    groups = {pair: group_of([pair], "ring") for pair in PAIRS}
    first, second = (next(groups[p] for p in PAIRS if p[n] == rank) for n in (0, 1))
    assert first is not None
    assert second is not None
    return first, second


def all_send_before_any_receives() -> None:
    onward, incoming = pair_of(world.rank)
    sent = [collectives.send(paddle.full([3], float(10 * world.rank + n)), onward) for n in range(3)]
    world.barrier()
    time.sleep(0.2)
    assert not any(one.done() for one in sent)  # a send lasts until it is received
    world.barrier()
    for n in range(3):
        check(collectives.receive([3], incoming), np.full(3, 10 * ((world.rank - 1) % 4) + n))
    for one in sent:
        one.result()


def messages_of_unlike_numbers() -> None:
    """Rank 0 alone sends: what all ranks do afterwards counts none of it."""
    onward, incoming = pair_of(world.rank)
    if world.rank == 0:
        collectives.send(paddle.ones([2]), onward).result()
    if world.rank == 1:
        check(collectives.receive([2], incoming), [1, 1])
    check(collectives.all_reduce(paddle.ones([1]), group_of([range(4)])), [4])


def parts_of_unlike_sizes() -> None:
    group, lengths = group_of([range(4)]), [3, 2, 0, 1]
    whole = np.arange(12, dtype=np.float32).reshape(2, 6)
    start = sum(lengths[: world.rank])
    part = paddle.to_tensor(whole[:, start : start + lengths[world.rank]])
    check(collectives.all_gather(part, group, 1, lengths), whole)
    summed = collectives.reduce_scatter(paddle.to_tensor(whole * (world.rank + 1)), group, 1, lengths)
    check(summed, 10 * whole[:, start : start + lengths[world.rank]])
    check(collectives.all_reduce(paddle.to_tensor([float(world.rank)]), group, collectives.MAX), [3])
    tensors = [paddle.full([size], float(world.rank)) for size in (7, collectives.BUCKET, 1, 3)]
    collectives.all_reduce_each(tensors, group)
    assert all((tensor.numpy() == 6).all() for tensor in tensors)


def waiting_is_no_error() -> None:
    collectives.meet(group_of([range(4)]))
    if world.rank == 2:
        time.sleep(0.5)
    before = time.monotonic()
    collectives.meet(group_of([range(4)]))
    assert world.rank == 2 or time.monotonic() - before > 0.3
    assert world.any(world.rank == 3)
    assert not world.any(False)
    assert world.total([1.0, float(world.rank)]) == [4.0, 6.0]


def weights_are_not_kept_for_the_backward_pass() -> None:
    """A rank of 4 at stage 3 holds its rows, their gradients, and what one layer needs at a time."""
    model = {
        "vocab_size": 64,
        "hidden_size": 128,
        "num_layers": 8,
        "num_attention_heads": 4,
        "max_position_embeddings": 8,
    }
    stage = {"sharding": 4, "sharding_stage": 3}
    spec = layouts.run_spec(stage, model=model, training={"seq_length": 4, "micro_batch_size": 1})
    trainer, _, world = backend.open_trainer(spec)
    assert isinstance(trainer, PaddleTrainer)
    whole = 4 * count_parameters(spec.model)
    batch = rank.batch(spec, 1, world)

    def peak() -> float:
        trainer.clear_gradients()
        before = memory("current")
        paddle.base.core.host_memory_stat_reset_peak_value("Allocated", 0)
        trainer.accumulate(batch)
        return (memory("peak") - before) / whole

    gathered = peak()
    for part in trainer._runs[0].sublayers():
        part.regathers = False
    kept = peak()
    assert gathered < 0.5, gathered
    assert kept > 1, kept


def memory(which: str) -> int:
    return int(getattr(paddle.base.core, f"host_memory_stat_{which}_value")("Allocated", 0))


if __name__ == "__main__":
    for exchange in (
        ranks_that_come_late,
        all_send_before_any_receives,
        messages_of_unlike_numbers,
        parts_of_unlike_sizes,
        waiting_is_no_error,
        weights_are_not_kept_for_the_backward_pass,
    ):
        exchange()
    assert dist.get_rank() == world.rank
    sys.stdout.flush()
    os._exit(0)
