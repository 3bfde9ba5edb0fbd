"""How a call is carried out, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnn_ext import autograd, checkpoint, ops, settings, transforms
from rnn_ext._load import _C
from rnn_ext.base import Recurrent
from rnn_ext.call import REFUSED, UNCHECKED, is_refusal
from rnn_ext.cells import Cell
from rnn_ext.frozen import kept_weights

PLANS = {
    "unpacked": "so few rows that the weights are used as they lie",
    "one step": "each weight is used once, and packed just before",
    "by sequence": "a vector holds one hidden unit of many sequences, and each thread runs its own sequences",
    "serial": "too little work for a second thread",
    "pipeline": "one thread runs the time loop, the others the large products of the neighbouring steps",
    "batch split": "each thread runs its own sequences, a faster one more of them",
    "hidden split": "each thread runs its own hidden units, with a barrier every step",
    "layer wavefront": "the layers run at the same time, each some steps behind the one before it",
    "direction split": "each thread runs one direction",
    "direction and batch split": "half of the threads for each direction, each with its own sequences",
    "direction and hidden split": "half of the threads for each direction, each with its own hidden units",
}


@dataclass(frozen=True)
class Explanation:
    """The way a call takes.

    Attributes:
        path: "kernel" for ours, "torch" for torch's own operator.
        reason: why this path, or why this plan.
        plan: name of the kernels' plan, on the CPU one of those in `PLANS`, which says what each is; None on path
            "torch".
        isa: instruction set of the kernels, or "cuda"; None on path "torch".
        threads: how many threads the call asks for; on path "torch" how many torch may take.
        product: how the kernels multiply, "fma", "amx" or "bf16" (`set_float32_product`); None on path "torch", and on
            CUDA, where the plan says it.
        frozen: whether the call uses weights that `frozen` keeps packed.
        checkpoint_steps: the most steps in a segment, where the call asks for a gradient and `checkpoint_time` cuts it;
            plan and threads are then those of a segment. None for a call in one piece.
    """

    path: str
    reason: str
    plan: str | None
    isa: str | None
    threads: int
    product: str | None
    frozen: bool = False
    checkpoint_steps: int | None = None

    def __str__(self) -> str:
        if self.path == "torch":
            return f"torch's own operator: {self.reason}"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        product = f"products by {self.product}" if self.product else ""
        frozen = "frozen weights" if self.frozen else ""
        how = ", ".join(filter(None, [product, frozen, f"plan '{self.plan}'", threads]))
        told = f"kernel for {self.isa}, {how}: {self.reason}"
        if self.checkpoint_steps is None:
            return told
        return f"{told}; segments of at most {self.checkpoint_steps} steps, which backward computes again"


def explain(
    module: nn.Module, input: Tensor | PackedSequence, hx: Tensor | Sequence[Tensor] | None = None
) -> Explanation:
    """Tells which path, plan, instruction set and threads `module(input, hx)` takes here and now, and why.

    This is the way of the call and of its gradient; inside `torch.func` transforms too, where a cell goes on torch's
    operators. Forward-mode tangents and gradients of gradients are computed on these for all classes.

    Args:
        module: a layer or a cell of rnn_ext.
        input, hx: as for the call, shapes and dtypes too; nothing is computed, unless to see torch refuse it, and but
            for weights that have to be computed (spectral_norm makes a step of its iteration, in training).

    Returns:
        An `Explanation`; printed, it is a sentence.

    Raises:
        TypeError: if module is not a layer or a cell of rnn_ext.
        ValueError, RuntimeError: what the call itself would raise for sizes and states like these. Dtypes, devices and
            packings that cannot be are judged at the call alone.
    """
    if not isinstance(module, (Recurrent, Cell)):
        raise TypeError(f"explain: expected a layer or a cell of rnn_ext, got {type(module).__name__}")
    call = module._ext_prepare(input, hx)
    if call.reason == UNCHECKED:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module._ext_run_torch(call)
    threads = torch.get_num_threads()
    reason = call.reason
    if reason is None and isinstance(module, Cell) and transforms.are_active() and not call.stack.batch_invariant:
        reason = "a transform of a cell takes less time on torch's operators"
    if reason is not None:
        return Explanation("torch", reason, None, None, threads, None)
    batch_sizes = [] if call.batch_sizes is None else call.batch_sizes.tolist()
    if batch_sizes:
        steps, batch = len(batch_sizes), batch_sizes[0]
    else:
        steps, batch = (1, *call.input.shape[:-1]) if isinstance(module, Cell) else call.input.shape[:2]
    layers, directions = call.stack.num_layers, call.stack.directions
    checkpoint_steps = None
    recorded = autograd.records(call.input, *call.weights, *(call.states or ()))
    if recorded:
        checkpoint_steps = checkpoint.steps_of(call.input, call.batch_sizes, call.stack)
    if checkpoint_steps is not None:
        steps = -(-steps // checkpoint.count_of(steps, checkpoint_steps))
        layers, directions = 1 if directions == 2 else layers, 1
    if call.input.is_cuda:
        projection = getattr(module, "proj_size", 0)
        sizes = (steps, batch, module.hidden_size, projection, directions)
        device = (call.input.dtype.itemsize, call.input.get_device(), settings.is_batch_invariant())
        try:
            plan = torch.ops.rnn_ext.cuda_plan(call.stack.mode, *sizes, *device)
        except RuntimeError as error:
            if not is_refusal(error):
                raise
            return Explanation("torch", REFUSED, None, None, threads, None)
        reason = "a projection runs step by step" if projection else "the plan with the least estimated time"
        return Explanation("kernel", reason, plan, "cuda", 1, None, checkpoint_steps=checkpoint_steps)
    frozen = kept_weights(module) is not None and not recorded and ops.goes_direct()
    plan, threads_of_call, product = _C.plan(
        call.stack.mode,
        steps,
        batch,
        batch_sizes[:steps],
        module.input_size,
        module.hidden_size,
        getattr(module, "proj_size", 0),
        layers,
        directions,
        str(call.input.dtype).removeprefix("torch."),
        threads,
        settings.is_batch_invariant(),
        frozen,
    )
    frozen = frozen and plan not in ("unpacked", "by sequence")
    reason = "torch runs on one thread" if plan == "serial" and threads == 1 else PLANS[plan]
    return Explanation("kernel", reason, plan, _C.isa(), threads_of_call, product, frozen, checkpoint_steps)
