"""One step of a cell in torch's operators, which anything can differentiate.

A Function under a transform takes longer than these few operators, and so does second order through one. So this is how
cells go there; layers, where a Function is for many steps, stay on the kernels (transforms.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnn_ext.ops import Stack


def step(
    stack: Stack, x: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """h' and, for an LSTM, c' of one step, each [B, H].

    Args:
        stack: the cell.
        x: [B, I].
        h_0, c_0: the states before, [B, H], or None for zeros; c_0 is an LSTM's.
        weights: w_ih, w_hh and, if the cell has biases, b_ih, b_hh.
    """
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:] or (None, None)
    given = (h_0, c_0)[: stack.states]
    states = [x.new_zeros(x.shape[0], w_hh.shape[1]) if s is None else s for s in given]
    return _CELLS[stack.mode](linear(x, w_ih, b_ih), linear(states[0], w_hh, b_hh), *states)


# The cells; a is the input's part of the pre-activations, b that of h.


def _rnn_tanh(a, b, h):
    return (torch.tanh(a + b),)


def _rnn_relu(a, b, h):
    return (torch.relu(a + b),)


def _lstm(a, b, h, c):
    i, f, g, o = (a + b).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(a, b, h):
    (a_r, a_z, a_n), (b_r, b_z, b_n) = a.chunk(3, -1), b.chunk(3, -1)
    n = torch.tanh(a_n + torch.sigmoid(a_r + b_r) * b_n)
    return (n + torch.sigmoid(a_z + b_z) * (h - n),)


_CELLS: dict[str, Callable[..., Any]] = {"RNN_TANH": _rnn_tanh, "RNN_RELU": _rnn_relu, "LSTM": _lstm, "GRU": _gru}
