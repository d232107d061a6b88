"""Data parallel steps of the bare models as each framework has them: what `parallel.py` compares with.

Each takes a model and a rank's batch of micro-batches and returns a step: the gradients of the micro-batches
add up, are averaged over the ranks once, clipped, and AdamW updates.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from workload import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY

from gptbridge.session import Batch
from gptbridge_specs import ModelSpec

Step = Callable[[], object]


def torch_loop(spec: ModelSpec, batch: Batch) -> Step:
    """DistributedDataParallel."""
    import torch
    from bare_torch import build
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(build(spec), gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, fused=True)
    inputs, labels = (torch.tensor(each).long() for each in (batch.inputs, batch.labels))

    def step() -> None:
        optimizer.zero_grad()
        for number in range(len(inputs)):
            last = number == len(inputs) - 1
            with nullcontext() if last else model.no_sync():
                (model(inputs[number], labels[number]) / len(inputs)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


def paddle_loop(spec: ModelSpec, batch: Batch) -> Step:
    """Gradients summed one by one: its DataParallel sums them after each micro-batch."""
    import paddle
    from bare_paddle import build
    from paddle import distributed, nn

    model = build(spec)
    optimizer = paddle.optimizer.AdamW(
        LEARNING_RATE,
        *BETAS,
        EPSILON,
        parameters=model.parameters(),
        weight_decay=WEIGHT_DECAY,
        grad_clip=nn.ClipGradByGlobalNorm(CLIP),
    )
    inputs, labels = (paddle.to_tensor(each) for each in (batch.inputs, batch.labels))
    share = 1 / (len(inputs) * distributed.get_world_size())

    def step() -> None:
        for number in range(len(inputs)):
            (model(inputs[number], labels[number]) * share).backward()
        for parameter in model.parameters():
            distributed.all_reduce(parameter.grad)
        optimizer.step()
        optimizer.clear_grad()

    return step


def mindspore_loop(spec: ModelSpec, batch: Batch) -> Step:
    """One graph for the gradients of a micro-batch, one for their sums over the ranks and the update."""
    import mindspore as ms
    from bare_mindspore import GPT
    from bare_mindspore import Step as Bare
    from mindspore import Tensor, ops
    from mindspore.communication import get_group_size
    from workload import initial_weights

    class Update(Bare):
        """The update by what `Gradients` has added up."""

        def __init__(self, model: GPT) -> None:
            super().__init__(model)
            self.sums = self.weights.clone("sum", init="zeros")
            self.all_reduce = ops.AllReduce()
            self.share = 1 / (len(batch.inputs) * get_group_size())

        def construct(self) -> Tensor:  # type: ignore[override]
            gradients: tuple[Tensor, ...] = ()
            for each in self.sums:
                gradients += (self.all_reduce(each) * self.share,)
            self.apply(gradients)
            for each in self.sums:
                ops.assign(each, ops.zeros_like(each))
            return self.powers

    class Gradients(ms.nn.Cell):
        def __init__(self, update: Update) -> None:
            super().__init__()
            self.loss_and_gradients, self.sums = update.loss_and_gradients, update.sums

        def construct(self, tokens: Tensor, labels: Tensor) -> Tensor:
            loss, gradients = self.loss_and_gradients(tokens, labels)
            for n in range(len(self.sums)):
                ops.assign_add(self.sums[n], gradients[n])
            return loss

    model = GPT(spec, batch.inputs.shape[-1])
    for parameter, value in zip(model.trainable_params(), initial_weights(spec).values(), strict=True):
        parameter.set_data(Tensor(value))
    update = Update(model)
    gradients = Gradients(update)
    pairs = [(Tensor(x), Tensor(y)) for x, y in zip(batch.inputs, batch.labels, strict=True)]

    def step() -> None:
        ms.set_context(mode=ms.GRAPH_MODE)
        for inputs, labels in pairs:
            gradients(inputs, labels)
        update().asnumpy()
        ms.set_context(mode=ms.PYNATIVE_MODE)  # as gptbridge takes it to be

    return step


LOOPS: dict[str, Callable[[ModelSpec, Batch], Step]] = {
    "torch": torch_loop,
    "paddle": paddle_loop,
    "mindspore": mindspore_loop,
}
