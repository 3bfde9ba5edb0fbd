"""The same layers on torch's own operators: what has no kernel of ours."""

from __future__ import annotations

from typing import Any

from torch import _VF, Tensor

_operator: dict[str, Any] = {"RNN_TANH": _VF.rnn_tanh, "RNN_RELU": _VF.rnn_relu, "LSTM": _VF.lstm, "GRU": _VF.gru}


def call(mode: str, input: Tensor, hx: Any, batch_sizes: Tensor | None, *options):
    """torch's operator on padded or packed input, hx as it takes it. Returns the output and the final states."""
    if batch_sizes is None:
        return _operator[mode](input, hx, *options, False)  # time comes first
    return _operator[mode](input, batch_sizes, hx, *options)
