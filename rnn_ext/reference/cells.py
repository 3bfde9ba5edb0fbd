"""One time step of each recurrent cell, forward and backward.

A cell never sees the time loop, the weights or the sequence. The loop (loop.py) hands it

    gates_x = W_ih x_t     + b_ih     [B, G*H]   what the input says
    gates_h = W_hh h_{t-1} + b_hh     [B, G*H]   what the past says
    state   = (h_{t-1}, ...)          each [B, H], h first, S of them

and the cell answers with the next state. The two halves arrive apart because some cells (the GRU)
do more than add them. B is the batch, H the hidden size, G the number of gates, S the number of states.

"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

State = tuple[np.ndarray, ...]


class Cell(Protocol):
    """Two numbers and two pure functions."""

    gates: int  # G: the weights have G*H rows, gate after gate
    states: int  # S: 1 for h alone, 2 for (h, c)

    def forward(self, gates_x: np.ndarray, gates_h: np.ndarray, state: State) -> tuple[State, Any]:
        """The next state, and whatever backward wants to remember."""

    def backward(self, d_state: State, saved: Any) -> tuple[np.ndarray, np.ndarray, State]:
        """Gradient in the next state -> d_gates_x, d_gates_h [B, G*H] and d_state_prev.

        d_state_prev holds only what reaches the old state directly; the way through W_hh is left to the loop.
        """


class Activation(NamedTuple):
    """A nonlinearity and its derivative. The derivative takes the *output* y = function(a), not a:
    the step then has to remember one array instead of two."""

    function: Callable[[np.ndarray], np.ndarray]
    derivative: Callable[[np.ndarray], np.ndarray]


# tanh'(a) = 1 - tanh(a)^2
tanh = Activation(np.tanh, lambda y: 1 - y * y)

# relu'(a) = 1 where a > 0, which is where the output is > 0; 0 at a = 0, as PyTorch has it
relu = Activation(lambda a: np.maximum(a, 0), lambda y: (y > 0).astype(y.dtype))


class RNNCell:
    """The Elman cell, https://docs.pytorch.org/docs/stable/generated/torch.nn.RNN.html (J. Elman, 1990):

        h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)

    `activation` is f as a pair (function, derivative of the output); tanh unless given.
    """

    gates = 1
    states = 1

    def __init__(self, activation: Activation | tuple[Callable, Callable] = tanh):
        self.activation = Activation(*activation)

    def forward(self, gates_x, gates_h, state):
        h = self.activation.function(gates_x + gates_h)  # [B, H]; the old h enters through gates_h alone
        return (h,), h

    def backward(self, d_state, saved):
        (dh,), h = d_state, saved
        da = dh * self.activation.derivative(h)  # a = gates_x + gates_h, so both get the same gradient
        return da, da, (np.zeros_like(dh),)
