"""Training in bounded memory: forward keeps the states at some steps alone, and backward computes the rest again.

Time is cut into segments. Forward runs them one after another and keeps the states between them. Backward takes them in
the opposite order: the forward operator again, from the state kept, then the backward operator, whose dh_0 and dc_0 are
the dh_n and dc_n of the segment that ran before.

A stack of one direction takes each segment through all of its layers, and keeps no output of those below the last. Two
directions meet the segments in opposite order, and a layer needs both of them complete: there each direction of each
layer runs over the whole time by itself, and the outputs of the layers below the last are kept. The operators have no
reverse direction alone: it runs as a forward one on sequences turned round in time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rnn_ext import ops, settings, transforms
from rnn_ext.ops import Stack


def steps_of(x: Tensor, batch_sizes: Tensor | None, stack: Stack) -> int | None:
    """How many steps a segment of this call may have; None for a call that is not to be cut.

    That is every call while `checkpoint_time` is off or torch.compile traces it, and calls that have nothing to gain:
    of one segment, a cell's too, or where the outputs are all that is kept, as in an RNN of one layer.
    """
    steps = settings.checkpoint_steps()
    if steps is None or torch.compiler.is_compiling() or x.layout != torch.strided:  # the operator refuses the last
        return None
    one_step = batch_sizes is None and x.dim() == 2
    refused = batch_sizes is not None and batch_sizes.dim() != 1  # by the operator
    if one_step or refused:
        return None
    keeps_more = stack.tape() > 0 or (stack.num_layers > 1 and not stack.bidirectional)
    return steps if keeps_more and steps < len(x if batch_sizes is None else batch_sizes) else None


def recurrent(x, h_0, c_0, weights, batch_sizes, masks, stack: Stack, steps: int) -> tuple[Tensor, ...]:
    """`rnn_ext.autograd.recurrent` in segments of at most `steps` steps; the other arguments as there."""
    return _Checkpointed.apply(stack, steps, batch_sizes, len(masks), x, h_0, c_0, *masks, *weights)


class Segment(NamedTuple):
    """Neighbouring steps, and the sequences that are in them: the first ones of the batch."""

    rows: slice  # of the first dimension of input, output and masks
    batch_sizes: Tensor | None  # of these steps, if packed
    steps: int
    batch: int

    def turn(self, reverse: bool) -> Callable[[Tensor], Tensor]:
        """What a direction does to the rows of this segment: nothing, or it turns each sequence round in time.

        Its own inverse. A sequence that ends within the segment is turned about its own end, so that the batch sizes
        stay what they are.
        """
        if not reverse:
            return lambda rows: rows
        n = self.batch_sizes
        if n is None:
            return lambda rows: rows.flip(0)
        lengths = (n[:, None] > torch.arange(self.batch, device=n.device)).sum(0)
        first_rows = n.cumsum(0) - n
        step = torch.arange(self.steps, device=n.device).repeat_interleave(n)
        sequence = torch.arange(len(step), device=n.device) - first_rows[step]
        turned = first_rows[lengths[sequence] - 1 - step] + sequence
        return lambda rows: rows.index_select(0, turned.to(rows.device))


def count_of(time: int, steps: int) -> int:
    """How many segments of at most `steps` steps there are."""
    return -(-time // steps)


def segments(x: Tensor, batch_sizes: Tensor | None, steps: int) -> list[Segment]:
    """The whole time in as few segments as can be, of equal length up to one step.

    So there is no short last one, which the kernels might sum in another order for its few rows.
    """
    time = len(x) if batch_sizes is None else len(batch_sizes)
    count = count_of(time, steps)
    spans = [(time * k // count, time * (k + 1) // count) for k in range(count)]
    if batch_sizes is None:
        return [Segment(slice(begin, end), None, end - begin, x.shape[1]) for begin, end in spans]
    first_rows = [0, *batch_sizes.cumsum(0).tolist()]
    if first_rows[-1] != len(x) or (batch_sizes.diff() > 0).any():  # the operator would see parts alone
        raise RuntimeError("rnn_ext: batch_sizes must not increase, and add up to the rows of the input")
    sizes = batch_sizes.tolist()
    return [
        Segment(slice(first_rows[begin], first_rows[end]), batch_sizes[begin:end], end - begin, sizes[begin])
        for begin, end in spans
    ]


class _Sweep(NamedTuple):
    """One run over the whole time: of a stack of one direction, or of one direction of one layer."""

    stack: Stack
    reverse: bool
    weights: slice  # of the call's
    states: slice  # of L*D
    columns: slice  # of the output


class _Level(NamedTuple):
    """Sweeps with the same input, that of the call or the output of the level below."""

    sweeps: list[_Sweep]
    mask: Tensor | None  # dropout of the input
    masks: tuple[Tensor, ...]  # dropout between layers of a sweep

    def input(self, below: Tensor, segment: Segment) -> Tensor:
        rows = below[segment.rows]
        return rows if self.mask is None else rows * self.mask[segment.rows]


def _levels(stack: Stack, weights, masks, output_size: int) -> list[_Level]:
    everything = slice(None)
    if not stack.bidirectional:
        return [_Level([_Sweep(stack, False, everything, everything, everything)], None, masks)]
    each, one = stack.of_each(weights), Stack(stack.mode, 1, False, stack.batch_invariant)

    def sweep(layer: int, d: int) -> _Sweep:
        i, columns = 2 * layer + d, slice(d * output_size, (d + 1) * output_size)
        return _Sweep(one, d == 1, slice(i * each, (i + 1) * each), slice(i, i + 1), columns)

    return [
        _Level([sweep(layer, 0), sweep(layer, 1)], masks[layer - 1] if masks and layer > 0 else None, ())
        for layer in range(stack.num_layers)
    ]


class _Checkpointed(torch.autograd.Function):
    """A call. Keeps its inputs, the states between the segments and the outputs of the levels below the last."""

    @staticmethod
    def forward(ctx, stack, steps, batch_sizes, num_masks, x, h_0, c_0, *masks_and_weights):
        masks, weights = masks_and_weights[:num_masks], masks_and_weights[num_masks:]
        parts, sizes = segments(x, batch_sizes, steps), stack.state_sizes(weights)
        directions = stack.directions
        # Slot k: the states before the k-th segment in the order in which a direction runs them.
        shape = len(parts) + 1, stack.num_layers * directions, max(part.batch for part in parts)
        states = [x.new_empty((*shape, size)) for size in sizes]
        for kept, initial in zip(states, (h_0, c_0)):
            kept[0] = 0 if initial is None else initial
        inputs = [x]
        for level in _levels(stack, weights, masks, sizes[0]):
            y = x.new_empty((*x.shape[:-1], directions * sizes[0]))
            for sweep in level.sweeps:
                _run(sweep, level, inputs[-1], weights[sweep.weights], states, parts, y)
            inputs.append(y)
        *below, y = inputs[1:]
        ctx.save_for_backward(batch_sizes, x, h_0, c_0, *below, *states, *masks_and_weights)
        ctx.set_materialize_grads(False)
        ctx.stack, ctx.steps, ctx.num_masks, ctx.num_below = stack, steps, num_masks, len(below)
        return y, *(kept[-1].clone() for kept in states)

    @staticmethod
    def backward(ctx, *d_outputs):
        batch_sizes, x, h_0, c_0, *rest = ctx.saved_tensors
        below, rest = rest[: ctx.num_below], rest[ctx.num_below :]
        states, masks_and_weights = rest[: len(d_outputs) - 1], rest[len(d_outputs) - 1 :]
        masks, weights = tuple(masks_and_weights[: ctx.num_masks]), masks_and_weights[ctx.num_masks :]

        def by_kernels(needs):
            parts = segments(x, batch_sizes, ctx.steps)
            levels = _levels(ctx.stack, weights, masks, states[0].shape[-1])
            return _gradients(d_outputs, levels, [x, *below], weights, states, parts, needs)

        wanted = ctx.needs_input_grad[4:]
        args = x, h_0, c_0, weights, batch_sizes, masks, ctx.stack
        return None, None, None, None, *transforms.gradients_of_call(wanted, by_kernels, (*d_outputs, None)[:3], *args)


def _two(states: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """h and c, which only an LSTM has."""
    return states[0], states[1] if len(states) > 1 else None


def _order(parts: list[Segment], reverse: bool) -> list[tuple[int, Segment]]:
    """The segments as a direction runs them, numbered."""
    return list(enumerate(reversed(parts) if reverse else parts))


def _run(sweep: _Sweep, level: _Level, below: Tensor, weights, states: list[Tensor], parts, y: Tensor) -> None:
    """A sweep forward. Fills the slots of `states` [K + 1, L*D, B, ..] behind the first, and its columns of y.

    Sequences that begin or end on the way need no care, in either direction. A slot has the state of every sequence:
    for one that is not in the segments so far the initial state, for one that is in none any more the final state.
    """
    own = [kept[:, sweep.states] for kept in states]
    for k, part in _order(parts, sweep.reverse):
        turn, masks = part.turn(sweep.reverse), tuple(mask[part.rows] for mask in level.masks)
        h_0, c_0 = _two([kept[k, :, : part.batch] for kept in own])
        rows = turn(level.input(below, part))
        output, *after = ops.forward(rows, h_0, c_0, weights, part.batch_sizes, masks, sweep.stack, False)
        y[part.rows][..., sweep.columns] = turn(output)
        for kept, state in zip(own, after, strict=True):
            kept[k + 1] = kept[k]
            kept[k + 1, :, : part.batch] = state


def _gradients(d_outputs, levels, inputs, weights, states, parts, needs) -> list[Tensor]:
    """The gradients that the backward operator gives for the whole call: those that are wanted, in the compute type."""
    x, (dy, *d_finals) = inputs[0], d_outputs
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    d_states = [
        torch.zeros_like(kept[0], dtype=dtype) if d is None else d.to(dtype, copy=True)
        for kept, d in zip(states, d_finals, strict=True)
    ]
    d_weights = [torch.zeros_like(w, dtype=dtype) for w in weights] if needs[3] else []
    dx = None
    for number, (level, below) in reversed(list(enumerate(zip(levels, inputs, strict=True)))):
        dx = torch.zeros_like(below, dtype=dtype) if needs[0] or number > 0 else None
        for sweep in level.sweeps:
            d_own = [d[sweep.states] for d in d_states]
            _run_back(
                sweep, level, below, weights[sweep.weights], states, parts, dy, d_own, dx, d_weights[sweep.weights]
            )
        dy = None if dx is None else dx.to(x.dtype)
    of_inputs = [d for d, need in zip((dx, *d_states), needs) if need and d is not None]
    return of_inputs + d_weights


def _run_back(sweep, level, below, weights, states, parts, dy, d_states, dx, d_weights) -> None:
    """A sweep backward. Makes d_states, of the final states, those of the initial ones; adds to dx and d_weights.

    dy, dx: [T, B, ..] or packed [R, ..], or None; d_states: one for each state, [L*D, B, ..] of this sweep.
    """
    own = [kept[:, sweep.states] for kept in states]
    needs = dx is not None, True, len(own) > 1, bool(d_weights)
    for k, part in reversed(_order(parts, sweep.reverse)):
        turn, masks = part.turn(sweep.reverse), tuple(mask[part.rows] for mask in level.masks)
        h_0, c_0 = _two([kept[k, :, : part.batch] for kept in own])
        rows = turn(level.input(below, part))
        y, *rest = ops.forward(rows, h_0, c_0, weights, part.batch_sizes, masks, sweep.stack, True)
        d_part = None if dy is None else turn(dy[part.rows][..., sweep.columns])
        dh_n, dc_n = _two([d[:, : part.batch].to(y.dtype) for d in d_states])
        saved = rest[len(own) :]
        gradients = iter(
            ops.backward(rows, h_0, weights, part.batch_sizes, masks, y, saved, d_part, dh_n, dc_n, sweep.stack, needs)
        )
        if dx is not None:
            d_rows = turn(next(gradients))
            dx[part.rows] += d_rows if level.mask is None else d_rows * level.mask[part.rows]
        for d in d_states:
            d[:, : part.batch] = next(gradients)
        for total, gradient in zip(d_weights, gradients, strict=True):
            total += gradient
