"""The layers of a model on the NumPy reference, all with one interface:

forward(x, state, lengths) -> output [T, B, D*H], final state, tape
backward(tape, d_output, d_final_state) -> dx, d_initial_state, gradients by parameter name
"""

from __future__ import annotations

import numpy as np

from rnn_ext import reference


class Recurrent:
    """A stack of recurrent layers with PyTorch's parameter names, or with those of models.StepByStep."""

    def __init__(self, cell: str, params: dict[str, np.ndarray]):
        self.cell = reference.CELLS[cell.removesuffix("Cell")]()
        self.names = {name: layer_name(name) for name in params}
        self.params = {self.names[name]: p for name, p in params.items()}

    def forward(self, x, state=None, lengths=None):
        return reference.forward(self.cell, x, self.params, state, lengths)

    def backward(self, tape, d_output, d_final_state):
        dx, d_initial_state, grads = reference.backward(tape, d_output, d_final_state)
        return dx, d_initial_state, {name: grads[ours] for name, ours in self.names.items()}


def layer_name(name: str) -> str:
    """A cell's parameter under its name in a layer: cell.weight_ih -> weight_ih_l0; others keep theirs."""
    return name.removeprefix("cell.") + "_l0" if name.startswith("cell.") else name


class DelayLine:
    """models.DelayLine: y_t = tanh(sum_k W_k x_{t-K+1+k} + b), W [H, I, K], and x = 0 before the start."""

    def __init__(self, params: dict[str, np.ndarray]):
        self.params = params

    def forward(self, x, state=None, lengths=None):
        W, b = self.params["taps.weight"], self.params["taps.bias"]
        past = np.concatenate([np.zeros((W.shape[2] - 1, *x.shape[1:]), x.dtype), x])
        windows = np.lib.stride_tricks.sliding_window_view(past, W.shape[2], axis=0)  # [T, B, I, K]
        y = np.tanh(np.einsum("tbik,hik->tbh", windows, W) + b)
        return y, None, (windows, y)

    def backward(self, tape, d_output, d_final_state=None):
        windows, y = tape
        da = d_output * reference.tanh.derivative(y)
        grads = {"taps.weight": np.einsum("tbh,tbik->hik", da, windows), "taps.bias": da.sum((0, 1))}
        return None, None, grads  # it reads the task's input, which needs no gradient
