"""The autograd Function over the compiled operators, and the operators' shapes for tracing.

The operators are private: a call of one outside the Function would not be differentiated. All tensors are time-major:
x [T, B, I] or packed [R, I] with batch_sizes [T]; y [T, B, D*P] or [R, D*P], P the size of h: that of the projection
where there is one, else H. The state is h [L*D, B, P], for an LSTM h and c [L*D, B, H].
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from rnn_ext import settings, torch_path
from rnn_ext._load import _C as _C  # registers the operators

_forward_op = torch.ops.rnn_ext.rnn_forward.default
_backward_op = torch.ops.rnn_ext.rnn_backward.default


class Stack(NamedTuple):
    """What a call is, besides its tensors."""

    mode: str  # as in torch.nn.RNNBase
    num_layers: int
    bidirectional: bool


def recurrent(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    masks: list[Tensor],
    stack: Stack,
) -> list[Tensor] | tuple[Tensor, ...]:
    """Output and final states (y, h_n and, for an LSTM, c_n) of a stack of recurrent layers; differentiable.

    Args:
        x: input, [T, B, I] or, with batch_sizes, packed [R, I]; float32, float64 or bfloat16, on CUDA float16 too.
        h_0, c_0: initial states [L*D, B, P] and [L*D, B, H], or None for zeros; c_0 is an LSTM's.
        weights: parameters in PyTorch's order, two or (with biases) four per layer and direction, for an LSTM with a
            projection one more.
        batch_sizes: int64 [T], as in a PackedSequence, or None.
        masks: a dropout mask [T, B, D*P] or [R, D*P] for every layer but the last, or nothing.
        stack: cell, layers and directions.

    Raises:
        RuntimeError: if memory runs out; with torch's own text.
    """
    if torch.is_grad_enabled() and (
        x.requires_grad
        or any(w.requires_grad for w in weights)
        or (h_0 is not None and h_0.requires_grad)
        or (c_0 is not None and c_0.requires_grad)
    ):
        return _Recurrent.apply(stack, batch_sizes, len(masks), x, h_0, c_0, *masks, *weights)
    return _forward(x, h_0, c_0, weights, batch_sizes, masks, stack, False)


def _forward(x, h_0, c_0, weights, batch_sizes, masks, stack, save):
    return _forward_op(x, h_0, c_0, weights, batch_sizes, masks or None, *stack, save, settings.is_batch_invariant())


def _backward(x, h_0, weights, batch_sizes, masks, y, saved, dy, dh_n, dc_n, stack, needs):
    tensors = (x, h_0, weights, batch_sizes, masks or None, y, saved, dy, dh_n, dc_n)
    invariant = settings.is_batch_invariant()
    if torch.compiler.is_compiling():
        return _backward_op(*tensors, *stack, *needs, invariant)
    try:
        return _backward_op(*tensors, *stack, *needs, invariant)
    except RuntimeError as error:
        raise_out_of_memory(error)
        raise


def raise_out_of_memory(error: RuntimeError) -> None:
    """Raises torch's error for memory that cannot be had, if that is what the operator's error says."""
    found = re.search(r"rnn_ext: can't allocate (\S+) bytes on device (\S+)", str(error))
    if found:
        size, device = int(float(found[1])), int(found[2])
        torch.empty(size, dtype=torch.uint8, device="cpu" if device < 0 else f"cuda:{device}")
        if device >= 0:
            text = f"CUDA out of memory. Tried to allocate {size} bytes on GPU {device}."
            raise torch.OutOfMemoryError(text) from None
        # It can be had now that the operator has given back what it held: torch's words all the same.
        raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {size} bytes.") from None


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, stack, batch_sizes, num_masks, x, h_0, c_0, *masks_and_weights):
        masks, weights = masks_and_weights[:num_masks], masks_and_weights[num_masks:]
        y, *rest = _forward(x, h_0, c_0, weights, batch_sizes, masks, stack, True)
        states = 2 if stack.mode == "LSTM" else 1
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
        num_masks = ctx.num_masks
        wanted = ctx.needs_input_grad
        needs = (*wanted[3:6], any(wanted[6 + num_masks :]))
        if torch.is_grad_enabled():  # a gradient of this gradient may be asked for
            gradients = _RecurrentBackward.apply(
                ctx.stack, needs, batch_sizes, num_masks, y, saved, dy, dh_n, dc_n, x, h_0, c_0, *masks_and_weights
            )
        else:
            masks, weights = masks_and_weights[:num_masks], masks_and_weights[num_masks:]
            gradients = _backward(x, h_0, weights, batch_sizes, masks, y, saved, dy, dh_n, dc_n, ctx.stack, needs)
            if x.dtype in (torch.bfloat16, torch.float16):
                gradients = [g.to(x.dtype) for g in gradients]
        gradients = iter(gradients)
        inputs = [next(gradients) if needed else None for needed in needs[:3]]
        of_weights = list(gradients) or [None] * (len(masks_and_weights) - num_masks)
        return (None, None, None, *inputs, *[None] * num_masks, *of_weights)


class _RecurrentBackward(torch.autograd.Function):
    """The gradient as a function of its own: forward is the fused operator, backward differentiates torch's layers."""

    @staticmethod
    def forward(ctx, stack, needs, batch_sizes, num_masks, y, saved, dy, dh_n, dc_n, x, h_0, c_0, *masks_and_weights):
        masks, weights = masks_and_weights[:num_masks], masks_and_weights[num_masks:]
        gradients = _backward(x, h_0, weights, batch_sizes, masks, y, saved, dy, dh_n, dc_n, stack, needs)
        ctx.save_for_backward(batch_sizes, dy, dh_n, dc_n, x, h_0, c_0, *masks_and_weights)
        ctx.set_materialize_grads(False)
        ctx.stack, ctx.needs, ctx.num_masks = stack, needs, num_masks
        return tuple(g.to(x.dtype) for g in gradients)

    @staticmethod
    def backward(ctx, *outer):
        batch_sizes, *tensors = ctx.saved_tensors
        num_masks = ctx.num_masks
        need_dx, need_dh_0, need_dc_0, need_dw = ctx.needs
        higher = torch.is_grad_enabled()
        with torch.enable_grad():
            # New aliases: dy may itself depend on x, and that dependence is not this function's.
            tensors = [None if t is None else t.view_as(t) if t.requires_grad else t.detach() for t in tensors]
            dy, dh_n, dc_n, x, h_0, c_0, *masks_and_weights = tensors
            masks, weights = masks_and_weights[:num_masks], masks_and_weights[num_masks:]
            inner = [x] * need_dx + [h_0] * need_dh_0 + [c_0] * need_dc_0 + weights * need_dw
            for t in inner:
                if not t.requires_grad:
                    t.requires_grad_()
            outputs = torch_path.layers(x, h_0, c_0, weights, batch_sizes, masks, ctx.stack)
            gradients = _gradients(outputs, inner, (dy, dh_n, dc_n), create_graph=True)
            sources = [dy, dh_n, dc_n, x, h_0, c_0, *[None] * num_masks, *weights]
            result = _gradients(gradients, sources, outer, create_graph=higher)
        return (*[None] * 6, *result)


def _gradients(outputs, inputs, d_outputs, create_graph):
    """torch.autograd.grad where outputs, inputs and output gradients may be None; unused inputs give None."""
    pairs = [(out, d) for out, d in zip(outputs, d_outputs, strict=False) if out is not None and d is not None]
    at = [i for i, t in enumerate(inputs) if t is not None and t.requires_grad]
    result: list[Tensor | None] = [None] * len(inputs)
    if pairs and at:
        gradients = torch.autograd.grad(
            [out for out, _ in pairs],
            [inputs[i] for i in at],
            [d for _, d in pairs],
            create_graph=create_graph,
            allow_unused=True,
        )
        for i, g in zip(at, gradients, strict=True):
            result[i] = g
    return result


@torch.library.register_fake("rnn_ext::rnn_forward")
def _fake_forward(
    x, h_0, c_0, weights, batch_sizes, masks, mode, num_layers, bidirectional, save, batch_invariant
) -> list[Tensor]:
    directions = 2 if bidirectional else 1
    pairs = num_layers * directions
    projected = len(weights) // pairs % 2  # then weight_hr [P, H] is the last of each layer and direction
    output_size, hidden_size = weights[1].shape[1], weights[-1 if projected else 1].shape[1]
    # The batch of a packed input stands in batch_sizes[0]: a size known from data alone.
    if batch_sizes is None:
        rows, batch = x.shape[0] * x.shape[1], x.shape[1]
    else:
        rows = x.shape[0]
        batch = h_0.shape[1] if h_0 is not None else _first_batch_size(batch_sizes)
    out = [x.new_empty((*x.shape[:-1], directions * output_size)), x.new_empty((pairs, batch, output_size))]
    if mode == "LSTM":
        out.append(x.new_empty((pairs, batch, hidden_size)))
    if save and num_layers > 1:
        out.append(x.new_empty((num_layers - 1, rows, directions * output_size)))
    tape = _C.tape(mode) + projected
    if save and tape > 0:
        out.append(x.new_empty((pairs, rows, tape, hidden_size)))
    return out


def _first_batch_size(batch_sizes: Tensor):
    if isinstance(batch_sizes, torch._subclasses.FakeTensor):
        return torch.library.get_ctx().new_dynamic_size()
    return int(batch_sizes[0])


@torch.library.register_fake("rnn_ext::rnn_backward")
def _fake_backward(
    x, h_0, weights, batch_sizes, masks, y, saved, dy, dh_n, dc_n, mode, num_layers, bidirectional,
    need_dx, need_dh_0, need_dc_0, need_dw, batch_invariant,
) -> list[Tensor]:  # fmt: skip
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    c_0 = h_0.new_empty((*h_0.shape[:2], saved[-1].shape[-1])) if need_dc_0 else None  # the tape is [.., H]
    wanted = [x] * need_dx + [h_0] * need_dh_0 + [c_0] * need_dc_0 + list(weights) * need_dw
    return [t.new_empty(t.shape, dtype=dtype) for t in wanted]
