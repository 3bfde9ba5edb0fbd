"""The same layers on torch's own operators: what has no kernel of ours, and gradients of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import _VF, Tensor

_operator: dict[str, Any] = {"RNN_TANH": _VF.rnn_tanh, "RNN_RELU": _VF.rnn_relu, "LSTM": _VF.lstm, "GRU": _VF.gru}


def call(mode: str, input: Tensor, states: Sequence[Tensor], batch_sizes: Tensor | None, *options, batch_first=False):
    """torch's operator on padded or packed input. Returns the output and the final states."""
    hx = states if mode == "LSTM" else states[0]
    if batch_sizes is None:
        return _operator[mode](input, hx, *options, batch_first)
    return _operator[mode](input, batch_sizes, hx, *options)


def layers(x, h_0, c_0, weights, batch_sizes, masks, stack) -> tuple[Tensor, ...]:
    """The function of `rnn_ext.ops.recurrent`, differentiable any number of times; arguments as there."""
    directions = 2 if stack.bidirectional else 1
    per_layer = len(weights) // stack.num_layers
    biases = per_layer >= 4 * directions
    states = [h_0, c_0] if stack.mode == "LSTM" else [h_0]
    if any(s is None for s in states):
        batch = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
        sizes = weights[1].shape[1], weights[1].shape[0] // 4  # of h and of an LSTM's c: the same without a projection
        rows = stack.num_layers * directions
        states = [x.new_zeros(rows, batch, n) if s is None else s for s, n in zip(states, sizes, strict=False)]
    finals = []
    for layer in range(stack.num_layers):
        own = tuple(s[layer * directions : (layer + 1) * directions] for s in states)
        parameters = list(weights[layer * per_layer : (layer + 1) * per_layer])
        # cuDNN's gradient has no gradient.
        with torch.backends.cudnn.flags(enabled=False) if x.is_cuda else nullcontext():
            x, *final = call(stack.mode, x, own, batch_sizes, parameters, biases, 1, 0.0, False, stack.bidirectional)
        finals.append(final)
        if masks and layer < stack.num_layers - 1:
            x = x * masks[layer]
    return x, *(torch.cat(final) for final in zip(*finals, strict=True))
