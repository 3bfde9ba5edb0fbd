"""Recurrent layers in plain NumPy: the specification that the fast kernels are checked against.

Read cells.py (one step), then loop.py (all steps, layers, directions), then train.py (losses, optimizers).
No file here imports torch or the extension; to import it as `rnn_ext.reference` does.
"""

from .cells import Activation, Cell, GRUCell, LSTMCell, RNNCell, relu, sigmoid, tanh
from .loop import Tape, backward, forward, stack_of
from .train import (
    SGD,
    Adam,
    binary_cross_entropy,
    clip_grad_norm,
    cross_entropy,
    init_params,
    linear,
    linear_backward,
    mean_squared_error,
    softmax,
)

# The cells by the name of the torch.nn layer that they specify.
CELLS = {"RNN": RNNCell, "LSTM": LSTMCell, "GRU": GRUCell}

__all__ = [
    "CELLS",
    "SGD",
    "Activation",
    "Adam",
    "Cell",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Tape",
    "backward",
    "binary_cross_entropy",
    "clip_grad_norm",
    "cross_entropy",
    "forward",
    "init_params",
    "linear",
    "linear_backward",
    "mean_squared_error",
    "relu",
    "sigmoid",
    "softmax",
    "stack_of",
    "tanh",
]
