"""The same layers and cells on torch's own operators: what has no kernel of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import _VF, Tensor

_layer: dict[str, Any] = {"RNN_TANH": _VF.rnn_tanh, "RNN_RELU": _VF.rnn_relu, "LSTM": _VF.lstm, "GRU": _VF.gru}
_step: dict[str, Any] = {
    "RNN_TANH": _VF.rnn_tanh_cell,
    "RNN_RELU": _VF.rnn_relu_cell,
    "LSTM": _VF.lstm_cell,
    "GRU": _VF.gru_cell,
}


def layer(mode: str, input: Tensor, hx: Any, batch_sizes: Tensor | None, *options):
    """torch's operator on padded or packed input, hx as it takes it. Returns the output and the final states."""
    if batch_sizes is None:
        return _layer[mode](input, hx, *options, False)  # time comes first
    return _layer[mode](input, batch_sizes, hx, *options)


def step(mode: str, input: Tensor, states: Sequence[Tensor], weights: Sequence[Any]) -> tuple[Tensor, ...]:
    """torch's operator for a cell, input [B, I]. Returns the states after the step."""
    out = _step[mode](input, tuple(states) if len(states) > 1 else states[0], *weights)
    return out if isinstance(out, tuple) else (out,)
