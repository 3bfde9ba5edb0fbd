"""The same layers on torch's own operators: what has no kernel of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import _VF, Tensor

_operator: dict[str, Any] = {"RNN_TANH": _VF.rnn_tanh, "RNN_RELU": _VF.rnn_relu, "LSTM": _VF.lstm, "GRU": _VF.gru}


def call(mode: str, input: Tensor, states: Sequence[Tensor], batch_sizes: Tensor | None, *options, batch_first=False):
    """torch's operator on padded or packed input. Returns the output and the final states."""
    hx = states if mode == "LSTM" else states[0]
    if batch_sizes is None:
        return _operator[mode](input, hx, *options, batch_first)
    return _operator[mode](input, batch_sizes, hx, *options)
