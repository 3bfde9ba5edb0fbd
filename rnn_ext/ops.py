"""The autograd Function over the compiled operators, and the operators' shapes for tracing.

The operators are private: a call of one outside the Function would not be differentiated. All tensors are time-major:
x [T, B, I] or packed [R, I] with batch_sizes [T]; y [T, B, D*H] or [R, D*H]; states [L*D, B, H].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, _VF

from rnn_ext import settings
from rnn_ext._load import _C as _C  # registers the operators

_forward_op = torch.ops.rnn_ext.rnn_forward.default
_backward_op = torch.ops.rnn_ext.rnn_backward.default
_torch_layer = {"RNN_TANH": _VF.rnn_tanh, "RNN_RELU": _VF.rnn_relu}


class Stack(NamedTuple):
    """What a call is, besides its tensors."""

    mode: str  # as in torch.nn.RNNBase
    num_layers: int
    bidirectional: bool


def recurrent(
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    masks: list[Tensor],
    stack: Stack,
) -> tuple[Tensor, Tensor]:
    """Output and final state of a stack of recurrent layers; differentiable.

    Args:
        x: input, [T, B, I] or, with batch_sizes, packed [R, I]; float32, float64 or bfloat16 on the CPU.
        h_0: initial state [L*D, B, H], or None for zeros.
        weights: parameters in PyTorch's order, two or (with biases) four per layer and direction.
        batch_sizes: int64 [T], as in a PackedSequence, or None.
        masks: a dropout mask [T, B, D*H] or [R, D*H] for every layer but the last, or nothing.
        stack: cell, layers and directions.

    Raises:
        RuntimeError: if memory runs out; with torch's own text.
    """
    if torch.is_grad_enabled() and (
        x.requires_grad or (h_0 is not None and h_0.requires_grad) or any(w.requires_grad for w in weights)
    ):
        return _Recurrent.apply(stack, batch_sizes, len(masks), x, h_0, *masks, *weights)
    y, h_n, _ = _forward(x, h_0, weights, batch_sizes, masks, stack, False)
    return y, h_n


def _forward(x, h_0, weights, batch_sizes, masks, stack, save):
    args = (x, h_0, weights, batch_sizes, masks, *stack, save, settings.is_batch_invariant())
    if torch.compiler.is_compiling():
        return _forward_op(*args)
    try:
        return _forward_op(*args)
    except RuntimeError:
        _allocate_forward(x, weights, stack, save)
        raise


def _allocate_forward(x, weights, stack, save):
    """Asks torch for the memory that the operator failed to get: the error that it raises says why."""
    outputs = (2 if stack.bidirectional else 1) * weights[1].shape[1]
    layers = stack.num_layers if save else min(stack.num_layers, 3)
    return [x.new_empty((*x.shape[:-1], outputs)) for _ in range(layers)]


def _backward(x, h_0, weights, batch_sizes, masks, y, hidden, dy, dh_n, stack, needs):
    args = (x, h_0, weights, batch_sizes, masks, y, hidden, dy, dh_n, *stack, *needs, settings.is_batch_invariant())
    if torch.compiler.is_compiling():
        return _backward_op(*args)
    try:
        return _backward_op(*args)
    except RuntimeError:
        _allocate_backward(x, weights)
        raise


def _allocate_backward(x, weights):
    return [torch.empty_like(t) for t in (x, *weights)]


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, stack, batch_sizes, num_masks, x, h_0, *masks_and_weights):
        masks, weights = masks_and_weights[:num_masks], masks_and_weights[num_masks:]
        y, h_n, hidden = _forward(x, h_0, weights, batch_sizes, masks, stack, True)
        ctx.save_for_backward(batch_sizes, x, h_0, y, hidden, *masks_and_weights)
        ctx.set_materialize_grads(False)
        ctx.stack = stack
        ctx.num_masks = num_masks
        return y, h_n

    @staticmethod
    def backward(ctx, dy, dh_n):
        batch_sizes, x, h_0, y, hidden, *masks_and_weights = ctx.saved_tensors
        num_masks = ctx.num_masks
        wanted = ctx.needs_input_grad
        needs = (wanted[3], wanted[4], any(wanted[5 + num_masks :]))
        if torch.is_grad_enabled():  # a gradient of this gradient may be asked for
            gradients = _RecurrentBackward.apply(
                ctx.stack, needs, batch_sizes, num_masks, y, hidden, dy, dh_n, x, h_0, *masks_and_weights
            )
        else:
            masks, weights = masks_and_weights[:num_masks], masks_and_weights[num_masks:]
            gradients = _backward(x, h_0, weights, batch_sizes, masks, y, hidden, dy, dh_n, ctx.stack, needs)
            if x.dtype == torch.bfloat16:
                gradients = [g.to(x.dtype) for g in gradients]
        gradients = iter(gradients)
        dx = next(gradients) if needs[0] else None
        dh_0 = next(gradients) if needs[1] else None
        return (None, None, None, dx, dh_0, *[None] * num_masks, *gradients)


class _RecurrentBackward(torch.autograd.Function):
    """The gradient as a function of its own: forward is the fused operator, backward differentiates torch's layers."""

    @staticmethod
    def forward(ctx, stack, needs, batch_sizes, num_masks, y, hidden, dy, dh_n, x, h_0, *masks_and_weights):
        masks, weights = masks_and_weights[:num_masks], masks_and_weights[num_masks:]
        gradients = _backward(x, h_0, weights, batch_sizes, masks, y, hidden, dy, dh_n, stack, needs)
        ctx.save_for_backward(batch_sizes, dy, dh_n, x, h_0, *masks_and_weights)
        ctx.set_materialize_grads(False)
        ctx.stack, ctx.needs, ctx.num_masks = stack, needs, num_masks
        return tuple(g.to(x.dtype) for g in gradients)

    @staticmethod
    def backward(ctx, *outer):
        batch_sizes, *tensors = ctx.saved_tensors
        num_masks = ctx.num_masks
        higher = torch.is_grad_enabled()
        with torch.enable_grad():
            # New aliases: dy may itself depend on x, and that dependence is not this function's.
            alias = [None if t is None else t.view_as(t) if t.requires_grad else t.detach() for t in tensors]
            dy, dh_n, x, h_0, *masks_and_weights = alias
            masks, weights = masks_and_weights[:num_masks], masks_and_weights[num_masks:]
            x, h_0 = _differentiable(x, ctx.needs[0]), _differentiable(h_0, ctx.needs[1])
            weights = [_differentiable(w, ctx.needs[2]) for w in weights]
            y, h_n = torch_layers(x, h_0, weights, batch_sizes, masks, ctx.stack)
            inner = [x] * ctx.needs[0] + [h_0] * ctx.needs[1] + list(weights) * ctx.needs[2]
            pairs = [(out, d) for out, d in ((y, dy), (h_n, dh_n)) if d is not None]
            gradients = torch.autograd.grad(
                [out for out, _ in pairs], inner, [d for _, d in pairs], create_graph=True, allow_unused=True
            )
            pairs = [(g, d) for g, d in zip(gradients, outer, strict=True) if g is not None and d is not None]
            sources = [dy, dh_n, x, h_0, *[None] * num_masks, *weights]
            at = [i for i, t in enumerate(sources) if t is not None and t.requires_grad]
            result: list[Tensor | None] = [None] * len(sources)
            if pairs and at:
                second = torch.autograd.grad(
                    [g for g, _ in pairs],
                    [sources[i] for i in at],
                    [d for _, d in pairs],
                    create_graph=higher,
                    allow_unused=True,
                )
                for i, g in zip(at, second, strict=True):
                    result[i] = g
        return (*[None] * 6, *result)


def _differentiable(t: Tensor | None, needed: bool) -> Tensor | None:
    return t.requires_grad_() if t is not None and needed and not t.requires_grad else t


def torch_layers(x, h_0, weights, batch_sizes, masks, stack):
    """The same function as `recurrent` by torch's own operators, which can be differentiated any number of times."""
    directions = 2 if stack.bidirectional else 1
    per_layer = len(weights) // stack.num_layers
    biases = per_layer == 4 * directions
    batch = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
    if h_0 is None:
        h_0 = x.new_zeros(stack.num_layers * directions, batch, weights[1].shape[1])
    finals = []
    for layer in range(stack.num_layers):
        state = h_0[layer * directions : (layer + 1) * directions]
        own = list(weights[layer * per_layer : (layer + 1) * per_layer])
        options = (state, own, biases, 1, 0.0, False, stack.bidirectional)
        if batch_sizes is None:
            x, final = _torch_layer[stack.mode](x, *options, False)
        else:
            x, final = _torch_layer[stack.mode](x, batch_sizes, *options)
        finals.append(final)
        if masks and layer < stack.num_layers - 1:
            x = x * masks[layer]
    return x, torch.cat(finals)


@torch.library.register_fake("rnn_ext::rnn_forward")
def _(x, h_0, weights, batch_sizes, masks, mode, num_layers, bidirectional, save, batch_invariant):
    directions = 2 if bidirectional else 1
    hidden_size = weights[1].shape[1]
    # The batch of a packed input stands in batch_sizes[0]: a size known from data alone.
    if batch_sizes is None:
        batch = x.shape[1]
    elif h_0 is not None:
        batch = h_0.shape[1]
    else:
        batch = torch.library.get_ctx().new_dynamic_size()
    y = x.new_empty((*x.shape[:-1], directions * hidden_size))
    h_n = x.new_empty((num_layers * directions, batch, hidden_size))
    rows = x.shape[0] if batch_sizes is not None else x.shape[0] * x.shape[1]
    hidden = x.new_empty((num_layers - 1, rows, directions * hidden_size) if save else (0,))
    return y, h_n, hidden


@torch.library.register_fake("rnn_ext::rnn_backward")
def _(
    x, h_0, weights, batch_sizes, masks, y, hidden, dy, dh_n, mode, num_layers, bidirectional, need_dx, need_dh_0, need_dw,
    batch_invariant,
):
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    wanted = [x] * need_dx + [h_0] * need_dh_0 + list(weights) * need_dw
    return [t.new_empty(t.shape, dtype=dtype) for t in wanted]
