"""The door to the kernels: one autograd Function over the operators, for everything but transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.autograd import forward_ad

from rnn_ext import checkpoint, loops, ops, transforms
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
    if transforms.are_active():
        if torch.compiler.is_compiling():
            from rnn_ext import compiled as compiled
        return transforms.recurrent(x, h_0, c_0, weights, batch_sizes, masks, stack)
    if records(x, h_0, c_0, *weights):
        steps = checkpoint.steps_of(x, batch_sizes, stack)
        if steps is not None:
            return checkpoint.recurrent(x, h_0, c_0, weights, batch_sizes, masks, stack, steps)
        tensors = (x, h_0, c_0, *masks, *weights)
        if torch.compiler.is_compiling():
            return _Recurrent.apply(None, None, stack, batch_sizes, len(masks), *tensors)
        alive = [None if t is None else unwrap_if_dead(t) for t in tensors]
        return _apply(None, None, stack, batch_sizes, len(masks), *alive)
    return ops.forward(x, h_0, c_0, weights, batch_sizes, masks, stack, False, kept)


def records(*tensors: Tensor | None) -> bool:
    """Whether a call on these is recorded for backward."""
    if not torch.is_grad_enabled():
        return False
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():  # which dynamo cannot trace
        return False
    return any(t is not None and t.requires_grad for t in tensors)


def differentiable(outputs, x, h_0, c_0, weights, batch_sizes, stack: Stack, token=None) -> tuple[Tensor, ...]:
    """What `recurrent` gives for a plain call of which the operator has given these outputs and what backward needs.

    token: loops.py's, of a step whose weights' gradients may wait for those of other steps.
    """
    return _apply(token, outputs, stack, batch_sizes, 0, x, h_0, c_0, *weights)


class _Recurrent(torch.autograd.Function):
    """First order and nothing else, which halves the cost of `apply`, and torch.compile takes it.

    token: see `differentiable`, or None.
    outputs: what the operator gives, where it has been called.
    """

    @staticmethod
    def forward(ctx, token, outputs, stack, batch_sizes, num_masks, x, h_0, c_0, *masks_and_weights):
        masks, weights = masks_and_weights[:num_masks], masks_and_weights[num_masks:]
        y, *rest = outputs or ops.forward(x, h_0, c_0, weights, batch_sizes, masks, stack, True)
        rest = rest or [y]  # of an RNN cell's step: h_n, which backward takes for y
        states = stack.states
        ctx.save_for_backward(batch_sizes, x, h_0, c_0, y, *masks_and_weights, *rest[states:])
        ctx.set_materialize_grads(False)
        alone = batch_sizes is None and x.dim() == 2  # the states of one step: one output less to differentiate
        ctx.call = stack, num_masks, len(weights), alone
        ctx.token = token
        return tuple(rest[:states]) if alone else (y, *rest[:states])

    @staticmethod
    def backward(ctx, *d_outputs):
        stack, num_masks, num_weights, alone = ctx.call
        if alone:
            d_outputs = None, *d_outputs
        if len(d_outputs) == 2:
            d_outputs = *d_outputs, None
        saved_tensors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[5:]
        if not torch.compiler.is_compiling() and forward_ad._current_level < 0:
            steps = loops.steps_of_pass(ctx.token)
            found = ops.gradients(saved_tensors, d_outputs, wanted, num_masks, stack, steps)
            if found is not NotImplemented:
                return None, None, None, None, None, *found
        batch_sizes, x, h_0, c_0, y, *rest = saved_tensors
        masks, rest = rest[:num_masks], rest[num_masks:]
        weights, saved = rest[:num_weights], rest[num_weights:]

        def by_kernels(needs):
            return ops.backward(x, h_0, weights, batch_sizes, masks, y, saved, *d_outputs, stack, needs)

        args = x, h_0, c_0, weights, batch_sizes, masks, stack
        # Compiled autograd adds gradients up itself, and takes no None.
        of_token = torch.zeros(0) if loops.is_node(ctx.token) and torch.compiler.is_compiling() else None
        return of_token, None, None, None, None, *transforms.gradients_of_call(wanted, by_kernels, d_outputs, *args)


# What `_Recurrent.apply` comes down to where no transform is active; the rest of it takes as long as this.
_apply = super(torch.autograd.Function, _Recurrent).apply
