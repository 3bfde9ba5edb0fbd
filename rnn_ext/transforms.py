"""The layers under `torch.func` and forward-mode differentiation: Functions that can be batched and differentiated.

With p the inputs and weights of a layer, f(p) its outputs, J the derivative of f and u the gradients of the outputs,

    Layer          f(p), by the forward operator     its gradient is LayerGradient, its tangent J p_
    LayerGradient  J^T u, by the backward operator   its derivatives come from the tangent t(p) = J p_ too:
                   of J^T u for p_ forward:  J^T u_ + grad_p <u, t>
                   backward for v:           t with v for p_ is the gradient for u, grad_p <u, t> that for p

so that first order runs on the kernels, and tangents and second order on torch's operators (tangents.py). How vmap
turns into a larger batch stands in batching.py. One step of a cell is less work than these Functions: one_step.py.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from rnn_ext import batching, one_step, ops, second_order
from rnn_ext.ops import Stack
from rnn_ext.tangents import tangent


def recurrent(x, h_0, c_0, weights, batch_sizes, masks, stack: Stack) -> tuple[Tensor, ...]:
    """`rnn_ext.autograd.recurrent` for any transform, one operator call for each layer; arguments as there."""
    if _is_step(x, batch_sizes):
        if not stack.batch_invariant:  # which promises bits
            h, *c = one_step.step(stack, x, h_0, c_0, weights)
            return h, h, *c
        h_0, c_0 = (None if s is None else s.unsqueeze(0) for s in (h_0, c_0))
        return tuple(t.squeeze(0) for t in recurrent(x.unsqueeze(0), h_0, c_0, weights, None, masks, stack))
    layer = Stack(stack.mode, 1, stack.bidirectional, stack.batch_invariant)
    directions = stack.directions
    states, per_layer = stack.states, directions * stack.of_each(weights)
    finals: list[list[Tensor]] = []
    for i in range(stack.num_layers):
        initial = [None if s is None else s[i * directions : (i + 1) * directions] for s in (h_0, c_0)]
        own = weights[i * per_layer : (i + 1) * per_layer]
        y, *rest = _Layer.apply(layer, batch_sizes, x, *initial, *own)
        finals.append(rest[:states])
        x = y * masks[i] if i < len(masks) else y
    return x, *(torch.cat(final) for final in zip(*finals, strict=True))


def are_active() -> bool:
    """Whether a call just now is inside of a transform or a level of forward mode."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _is_step(x, batch_sizes) -> bool:
    return batch_sizes is None and x.dim() == 2


def gradients(d_outputs, x, h_0, c_0, weights, batch_sizes, masks, stack, needs):
    """The gradients that the backward operator gives, but such that any transform of them is right.

    Args:
        d_outputs: gradients of y, h_n and c_n, or None for zeros.
        x, ...: as for `recurrent`.
        needs: which gradients are wanted: of x, h_0, c_0 and all weights.
    """
    if not (stack.batch_invariant or are_active() or is_compiling()):
        return second_order.gradients(d_outputs, x, h_0, c_0, weights, batch_sizes, masks, stack, needs)
    primals = [x, h_0, c_0, *weights]
    wanted = [i for i, need in enumerate((*needs[:3], *[needs[3]] * len(weights))) if need]

    def call(*values):
        p = _replaced(primals, wanted, values)
        return recurrent(*p[:3], p[3:], batch_sizes, masks, stack)

    outputs, pull = torch.func.vjp(call, *(primals[i] for i in wanted))
    return list(pull(_with_zeros(d_outputs, outputs)))


def gradients_of_call(wanted, by_kernels, d_outputs, x, h_0, c_0, weights, batch_sizes, masks, stack):
    """What the backward of a call's Function gives: gradients of x, h_0, c_0, the masks (None) and the weights.

    Args:
        wanted: which of them, one by one.
        by_kernels: by_kernels(needs) gives those of `gradients` where nobody differentiates or batches them.
        d_outputs, x, ...: as for `gradients`.
    """
    if all(d is None for d in d_outputs):
        return [None] * len(wanted)
    needs = (*wanted[:3], any(wanted[3 + len(masks) :]))
    args = d_outputs, x, h_0, c_0, weights, batch_sizes, masks, stack, needs
    if not is_compiling() and any(d is not None and is_legacy_batchedtensor(d) for d in d_outputs):
        found = _in_older_vmap(*args)
    elif torch.is_grad_enabled() or are_active():  # somebody may differentiate this, or dy have a batch or a tangent
        found = gradients(*args)
    else:
        found = by_kernels(needs)
        if x.dtype in (torch.bfloat16, torch.float16):
            found = ops.rounded(found, x.dtype)
    found = iter(found)
    of_inputs = [next(found) if needed else None for needed in needs[:3]]
    return *of_inputs, *[None] * len(masks), *(list(found) or [None] * len(weights))


def _in_older_vmap(d_outputs, *args):
    """The gradients where torch.autograd.grad(is_grads_batched=True) has batched d_outputs, which no operator takes."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    batched = [d is not None and is_legacy_batchedtensor(d) for d in d_outputs]
    values = [torch._remove_batch_dim(d, level, 1, 0) if b else d for d, b in zip(d_outputs, batched, strict=True)]
    in_dims = tuple(0 if b else None for b in batched)
    results = torch.func.vmap(lambda *d: gradients(d, *args), in_dims)(*values)
    return [torch._add_batch_dim(r.contiguous(), 0, level) for r in results]


def _for_outer_levels(jvp):
    """jvp(ctx, saved tensors, *tangents) such that its own tangent is right, where forward mode is nested.

    torch calls a Function's jvp with forward mode switched off at all levels, not at this one alone.
    """

    @functools.wraps(jvp)
    def wrapped(ctx, *tangents):
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [None if t is None else forward_ad.unpack_dual(t, level=0).primal for t in ctx.saved_tensors]
            return jvp(ctx, saved, *tangents)

    return wrapped


class _Layer(torch.autograd.Function):
    """(layer, batch_sizes, x, h_0, c_0, *weights) -> y, h_n, an LSTM's c_n and, where the cell has one, the tape."""

    @staticmethod
    def forward(layer, batch_sizes, x, h_0, c_0, *weights):
        return tuple(ops.forward(x, h_0, c_0, weights, batch_sizes, (), layer, True))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.layer, batch_sizes, *primals = inputs
        ctx.num_outputs = len(output)
        states = ctx.layer.states
        tape = output[1 + states] if len(output) > 1 + states else None
        if tape is not None:
            ctx.mark_non_differentiable(tape)
        _save(ctx, batch_sizes, output[0], tape, *primals)

    @staticmethod
    def backward(ctx, dy, dh_n, *rest):
        wanted = ctx.needs_input_grad
        if all(d is None for d in (dy, dh_n, *rest[: ctx.layer.states - 1])):
            return (None,) * len(wanted)
        batch_sizes, y, tape, *primals = ctx.saved_tensors
        needs = (*wanted[2:5], any(wanted[5:]))
        dc_n = rest[0] if ctx.layer.states > 1 else None
        return None, None, *_LayerGradient.apply(ctx.layer, needs, batch_sizes, y, tape, dy, dh_n, dc_n, *primals)

    @staticmethod
    @_for_outer_levels
    def jvp(ctx, saved, *tangents):
        batch_sizes, _, _, *primals = saved
        outputs = tangent(ctx.layer, batch_sizes, primals, tangents[2:])
        return *outputs, *[None] * (ctx.num_outputs - len(outputs))

    @staticmethod
    def vmap(info, in_dims, *args):
        return batching.layer(_Layer.apply, info.batch_size, in_dims, *args)


class _LayerGradient(torch.autograd.Function):
    """(layer, needs, batch_sizes, y, tape, dy, dh_n, dc_n, x, h_0, c_0, *weights) -> gradients of the last four.

    needs: which of dx, dh_0, dc_0 and the weights' are wanted; the others are None. y and the tape are the layer's own
    outputs: what they contribute to a derivative is part of x's, h_0's, c_0's and the weights'.
    """

    @staticmethod
    def forward(layer, needs, batch_sizes, y, tape, dy, dh_n, dc_n, x, h_0, c_0, *weights):
        y, *saved = (t.contiguous() for t in (y, tape) if t is not None)
        found = iter(ops.backward(x, h_0, weights, batch_sizes, (), y, saved, dy, dh_n, dc_n, layer, needs))
        wanted = (*needs[:3], *[needs[3]] * len(weights))
        return tuple(next(found).to(x.dtype) if need else None for need in wanted)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.layer, ctx.needs, *tensors = inputs
        _save(ctx, *tensors)

    @staticmethod
    def backward(ctx, *v):
        if all(t is None for t in v):
            return (None,) * len(ctx.needs_input_grad)
        batch_sizes, _, _, *tensors = ctx.saved_tensors
        d_outputs, primals = tensors[:3], tensors[3:]
        wanted = [i for i, need in enumerate(ctx.needs_input_grad[8:]) if need]
        t, of_primals = _tangent_and_gradient(ctx.layer, batch_sizes, primals, v, d_outputs, wanted)
        of_outputs = [t[i] if i < len(t) and d is not None else None for i, d in enumerate(d_outputs)]
        return *[None] * 5, *of_outputs, *of_primals

    @staticmethod
    @_for_outer_levels
    def jvp(ctx, saved, *tangents):
        batch_sizes, y, tape, *tensors = saved
        d_outputs, primals = tensors[:3], tensors[3:]
        d_outputs_, primals_ = tangents[5:8], tangents[8:]
        result = [None] * len(primals)
        if any(t is not None for t in d_outputs_):
            result = list(_LayerGradient.apply(ctx.layer, ctx.needs, batch_sizes, y, tape, *d_outputs_, *primals))
        if any(t is not None for t in primals_):
            wanted = [i for i, need in enumerate((*ctx.needs[:3], *[ctx.needs[3]] * len(primals[3:]))) if need]
            _, more = _tangent_and_gradient(ctx.layer, batch_sizes, primals, primals_, d_outputs, wanted)
            result = [a if b is None else b if a is None else a + b for a, b in zip(result, more, strict=True)]
        return tuple(result)

    @staticmethod
    def vmap(info, in_dims, *args):
        return batching.gradient(_LayerGradient.apply, _Layer.apply, info.batch_size, in_dims, *args)


def _tangent_and_gradient(layer, batch_sizes, primals, primals_, d_outputs, wanted):
    """t = J p_, and for the wanted ones of p the gradient of <u, t>."""

    def call(*values):
        return tangent(layer, batch_sizes, _replaced(primals, wanted, values), primals_)

    t, pull = torch.func.vjp(call, *(primals[i] for i in wanted))
    return t, _replaced([None] * len(primals), wanted, pull(_with_zeros(d_outputs, t)))


def _save(ctx, *tensors) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.set_materialize_grads(False)


def _replaced(values, at, new):
    values = list(values)
    for i, value in zip(at, new, strict=True):
        values[i] = value
    return values


def _with_zeros(gradients, like):
    return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(gradients, like, strict=False))
