"""What `torch.utils.flop_counter` counts of a call: its matrix products, two operations for a term of a sum."""

from __future__ import annotations

from math import prod

import torch
from torch.utils.flop_counter import register_flop_formula

from rnn_ext._load import _C as _C  # registers the operators


def _matrices(shapes, num_layers: int, bidirectional: bool) -> list[tuple[int, int, int]]:
    """(layer, place in it, numbers) of each weight that is a matrix, given the shapes of all weights."""
    each = len(shapes) // (num_layers * (1 + bidirectional))
    return [(i // each // (1 + bidirectional), i % each, prod(s)) for i, s in enumerate(shapes) if len(s) == 2]


@register_flop_formula(torch.ops.rnn_ext.rnn_forward)
def _of_forward(x, h_0, c_0, weights, batch_sizes, masks, mode, num_layers, bidirectional, *_, **__) -> int:
    """The arguments are the operator's, with shapes for tensors: x [T, B, I], packed [R, I] or, of one step, [B, I]."""
    return 2 * prod(x[:-1]) * sum(n for _, _, n in _matrices(weights, num_layers, bidirectional))


@register_flop_formula(torch.ops.rnn_ext.rnn_backward)
def _of_backward(
    x, h_0, weights, batch_sizes, masks, y, saved, dy, dh_n, dc_n, mode, num_layers, bidirectional, need_dx, need_dh_0,
    need_dc_0, need_dw, *_, **__,
) -> int:  # fmt: skip
    """Of packed input, whose batch is not told by shapes, the first step's dh_0 counts even if nobody wants it."""
    rows, total = prod(x[:-1]), 0
    first = 0 if need_dh_0 or batch_sizes is not None else x[-2]  # rows of the first step
    for layer, place, numbers in _matrices(weights, num_layers, bidirectional):
        on_the_way_back = rows if place > 1 else rows - first if place == 1 else rows * (need_dx or layer > 0)
        total += 2 * numbers * (on_the_way_back + rows * need_dw)
    return total
