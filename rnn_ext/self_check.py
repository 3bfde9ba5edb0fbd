"""Whether layers and cells compute right on this machine: each against the NumPy reference, forward and backward."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_ext import reference
from rnn_ext.cells import GRUCell, LSTMCell, RNNCell
from rnn_ext.explain import explain
from rnn_ext.modules import GRU, LSTM, RNN
from rnn_ext.route import SlowPathWarning

# Errors, relative to the largest number of an output or a gradient (one at least), may be this many eps.
_EPS = 100

# What to check beside its specification, in the constructor's words.
_MODULES: list[tuple[type[nn.Module], reference.Cell, dict[str, str]]] = [
    (RNN, reference.RNNCell(reference.tanh), {"nonlinearity": "tanh"}),
    (RNN, reference.RNNCell(reference.relu), {"nonlinearity": "relu"}),
    (LSTM, reference.LSTMCell(), {}),
    (GRU, reference.GRUCell(), {}),
    (RNNCell, reference.RNNCell(reference.tanh), {"nonlinearity": "tanh"}),
    (RNNCell, reference.RNNCell(reference.relu), {"nonlinearity": "relu"}),
    (LSTMCell, reference.LSTMCell(), {}),
    (GRUCell, reference.GRUCell(), {}),
]

# Steps, sequences, input size, hidden size: few rows on one thread, and enough work for several threads. What NumPy
# has to do in a step stays below the size at which its library takes threads too, and gets in the way of ours.
_LAYER_SHAPES = [(2, 2, 5, 7), (12, 9, 45, 49)]
_CELL_SHAPES = [(1, 2, 5, 7), (1, 64, 129, 130)]


class Check(NamedTuple):
    """One module in one dtype.

    Attributes:
        name, dtype: which.
        forward, backward: largest relative errors of outputs and gradients; None if the call failed.
        bound: what they may be.
        error: why the call failed, or None.
    """

    name: str
    dtype: str
    forward: float | None
    backward: float | None
    bound: float
    error: str | None = None

    @property
    def passed(self) -> bool:
        """False for NaN, too."""
        errors = (self.forward, self.backward)
        return self.error is None and all(e is not None and e <= self.bound for e in errors)


def checks() -> Iterator[Check]:
    """Runs every check in turn, some seconds altogether. A call that raises is a check that failed."""
    for make, cell, options in _MODULES:
        for dtype in (torch.float64, torch.float32):
            name = " ".join([make.__name__, *options.values()])
            kind, bound = str(dtype).removeprefix("torch."), _EPS * torch.finfo(dtype).eps
            shapes = _CELL_SHAPES if make.__name__.endswith("Cell") else _LAYER_SHAPES
            try:
                errors = [_errors(make, cell, options, dtype, shape) for shape in shapes]
            except Exception as error:
                yield Check(name, kind, None, None, bound, f"{type(error).__name__}: {error}")
            else:
                forward, backward = np.max(errors, axis=0)
                yield Check(name, kind, float(forward), float(backward), bound)


def _errors(make, cell, options, dtype, shape) -> tuple[float, float]:
    """Largest relative errors of the outputs and of the gradients of one call."""
    random = np.random.default_rng(0)
    steps, batch, input_size, hidden_size = shape
    is_cell = issubclass(make, nn.RNNCellBase)
    stack = {} if is_cell else {"num_layers": 2, "bidirectional": True}
    module = make(input_size, hidden_size, **options, **stack, dtype=dtype)
    lengths = np.maximum(steps - np.arange(batch) * 7 % steps, 1)  # unsorted, the first one full
    rows, columns = (1, hidden_size) if is_cell else (4, 2 * hidden_size)

    def tensor(*sizes: int) -> Tensor:
        return torch.from_numpy(random.uniform(-1, 1, sizes)).to(dtype)

    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(tensor(*weight.shape) / hidden_size**0.5)
    x, *states = [tensor(steps, batch, input_size), *(tensor(rows, batch, hidden_size) for _ in range(cell.states))]
    d_outputs = [tensor(steps, batch, columns), *(tensor(rows, batch, hidden_size) for _ in range(cell.states))]
    leaves = [t.requires_grad_() for t in (x, *states)] + list(module.parameters())
    outputs = _call(module, x, states, None if is_cell else lengths)
    gradients = torch.autograd.grad(outputs, leaves, d_outputs)

    params = {n + "_l0" * is_cell: _as_numpy(weight) for n, weight in module.named_parameters()}
    initial, (dy, *d_states) = tuple(map(_as_numpy, states)), map(_as_numpy, d_outputs)
    y, final, tape = reference.forward(cell, _as_numpy(x), params, initial, lengths)
    dx, d_initial, d_params = reference.backward(tape, dy, tuple(d_states))
    return (
        _largest_error(outputs, [y, *final]),
        _largest_error(gradients, [dx, *d_initial, *d_params.values()]),
    )


def _call(module: nn.Module, x: Tensor, states: list[Tensor], lengths: np.ndarray | None) -> list[Tensor]:
    """Output [T, B, D*H] and final states [L*D, B, H] of a layer, on packed sequences, or of a cell's one step."""
    sequences = x[0] if lengths is None else pack_padded_sequence(x, lengths.tolist(), enforce_sorted=False)
    given = [s[0] for s in states] if lengths is None else states
    hx = given[0] if len(given) == 1 else tuple(given)
    told = explain(module, sequences, hx)
    if told.path != "kernel":
        raise RuntimeError(f"the call does not run on the kernels: {told.reason}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowPathWarning)  # the same, found out late
        result = module(sequences, hx)
    output, final = (None, result) if lengths is None else result
    final = list(final) if isinstance(final, tuple) else [final]
    if output is None:
        final = [s.unsqueeze(0) for s in final]
        return [final[0], *final]
    return [pad_packed_sequence(output)[0], *final]


def _as_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _largest_error(actual, exact) -> float:
    pairs = zip(map(_as_numpy, actual), exact, strict=True)
    return float(np.max([np.abs(a - e).max() / max(1, np.abs(e).max()) for a, e in pairs]))
