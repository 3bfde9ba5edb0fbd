"""The door to the kernels: one autograd Function over the operators, for everything but transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.autograd import forward_ad

from rnn_ext import checkpoint, ops, transforms
from rnn_ext.ops import Stack


def recurrent(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    masks: list[Tensor],
    stack: Stack,
    kept: Any = None,
) -> list[Tensor] | tuple[Tensor, ...]:
    """Output and final states (y, h_n and, for an LSTM, c_n) of a stack of recurrent layers; differentiable.

    Of one step [B, I] there may be the states alone.

    Args:
        x: input, [T, B, I] or, with batch_sizes, packed [R, I]; float32, float64, bfloat16 or float16. One
            step of one layer and direction may be [B, I]: then states have no first dimension either.
        h_0, c_0: initial states [L*D, B, P] and [L*D, B, H], or None for zeros; c_0 is an LSTM's.
        weights: parameters in PyTorch's order, two or (with biases) four per layer and direction, for an LSTM with a
            projection one more.
        batch_sizes: int64 [T], as in a PackedSequence, or None.
        masks: a dropout mask [T, B, D*P] or [R, D*P] for every layer but the last, or nothing.
        stack: cell, layers and directions.
        kept: where packed weights are kept for calls that need no gradient (frozen.py), or None.

    Raises:
        RuntimeError: for wrong shapes, and if memory runs out; the text has "rnn_ext:" in it, and call.py puts torch's
            in its place.
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        if torch.compiler.is_compiling():
            from rnn_ext import compiled as compiled
        return transforms.recurrent(x, h_0, c_0, weights, batch_sizes, masks, stack)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or any(w.requires_grad for w in weights)
        or (h_0 is not None and h_0.requires_grad)
        or (c_0 is not None and c_0.requires_grad)
    ):
        steps = checkpoint.steps_of(x, batch_sizes, stack)
        if steps is not None:
            return checkpoint.recurrent(x, h_0, c_0, weights, batch_sizes, masks, stack, steps)
        tensors = (x, h_0, c_0, *masks, *weights)
        if torch.compiler.is_compiling():
            return _Recurrent.apply(stack, batch_sizes, len(masks), *tensors)
        return _apply(stack, batch_sizes, len(masks), *[None if t is None else unwrap_if_dead(t) for t in tensors])
    return ops.forward(x, h_0, c_0, weights, batch_sizes, masks, stack, False, kept)


class _Recurrent(torch.autograd.Function):
    """First order and nothing else, which halves the cost of `apply`, and torch.compile takes it."""

    @staticmethod
    def forward(ctx, stack, batch_sizes, num_masks, x, h_0, c_0, *masks_and_weights):
        masks, weights = masks_and_weights[:num_masks], masks_and_weights[num_masks:]
        y, *rest = ops.forward(x, h_0, c_0, weights, batch_sizes, masks, stack, True)
        states = stack.states
        ctx.num_saved = len(rest) - states
        ctx.save_for_backward(batch_sizes, x, h_0, c_0, y, *rest[states:], *masks_and_weights)
        ctx.set_materialize_grads(False)
        ctx.stack = stack
        ctx.num_masks = num_masks
        return y, *rest[:states]

    @staticmethod
    def backward(ctx, dy, dh_n, dc_n=None):
        batch_sizes, x, h_0, c_0, y, *rest = ctx.saved_tensors
        saved, masks_and_weights = rest[: ctx.num_saved], rest[ctx.num_saved :]
        masks, weights = masks_and_weights[: ctx.num_masks], masks_and_weights[ctx.num_masks :]
        d_outputs, stack = (dy, dh_n, dc_n), ctx.stack

        def by_kernels(needs):
            return ops.backward(x, h_0, weights, batch_sizes, masks, y, saved, *d_outputs, stack, needs)

        wanted = ctx.needs_input_grad[3:]
        args = x, h_0, c_0, weights, batch_sizes, masks, stack
        return None, None, None, *transforms.gradients_of_call(wanted, by_kernels, d_outputs, *args)


# What `_Recurrent.apply` comes down to where no transform is active; the rest of it takes as long as this.
_apply = super(torch.autograd.Function, _Recurrent).apply
