"""One time step of each recurrent cell, forward and backward.

A cell never sees the time loop, the weights or the sequence. The loop (loop.py) hands it

    gates_x = W_ih x_t     + b_ih     [B, G*H]   what the input says
    gates_h = W_hh h_{t-1} + b_hh     [B, G*H]   what the past says
    state   = (h_{t-1}, ...)          each [B, H], h first, S of them

and the cell answers with the next state. The two halves arrive apart because some cells (the GRU)
do more than add them. B is the batch, H the hidden size, G the number of gates, S the number of states.
Where the loop projects h before it goes on, the old h is not [B, H]: only a cell that leaves it alone,
as the LSTM does, can be projected.
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

        d_state_prev holds only what reaches the old state directly (0 for nothing); the way through W_hh is left
        to the loop.
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
        return da, da, (0,)  # the old h enters through gates_h alone


def sigmoid(a: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-a)), written with tanh so that no a overflows."""
    return (1 + np.tanh(a / 2)) / 2


class LSTMCell:
    """Long short-term memory, https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html
    (S. Hochreiter and J. Schmidhuber, 1997; F. Gers et al., 2000), gates in the order i, f, g, o:

        i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)      g = tanh(a_g)      a = gates_x + gates_h
        c_t = f c_{t-1} + i g
        h_t = o tanh(c_t)
    """

    gates = 4
    states = 2

    def forward(self, gates_x, gates_h, state):
        _, c_prev = state
        a_i, a_f, a_g, a_o = np.split(gates_x + gates_h, 4, axis=1)  # each [B, H]
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
        c = f * c_prev + i * g
        tanh_c = np.tanh(c)
        return (o * tanh_c, c), (i, f, g, o, c_prev, tanh_c)

    def backward(self, d_state, saved):
        (dh, dc), (i, f, g, o, c_prev, tanh_c) = d_state, saved
        dc = dc + dh * o * (1 - tanh_c**2)  # c reaches the loss through h and through the next step
        da = np.concatenate(
            [dc * g * i * (1 - i), dc * c_prev * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)], axis=1
        )
        return da, da, (0, dc * f)  # the old h enters through gates_h alone


class GRUCell:
    """Gated recurrent unit, https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html
    (K. Cho et al., 2014), reset after the product, gates in the order r, z, n:

        r, z = sigmoid(gates_x + gates_h) of their rows
        n = tanh(gates_x of n + r * gates_h of n)
        h_t = (1 - z) n + z h_{t-1}
    """

    gates = 3
    states = 1

    def forward(self, gates_x, gates_h, state):
        (h_prev,) = state
        (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(gates_x, 3, axis=1), np.split(gates_h, 3, axis=1)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        n = np.tanh(x_n + r * h_n)
        return ((1 - z) * n + z * h_prev,), (r, z, n, h_n, h_prev)

    def backward(self, d_state, saved):
        (dh,), (r, z, n, h_n, h_prev) = d_state, saved
        da_n = dh * (1 - z) * (1 - n**2)
        da_z = dh * (h_prev - n) * z * (1 - z)
        da_r = da_n * h_n * r * (1 - r)
        d_gates_x = np.concatenate([da_r, da_z, da_n], axis=1)
        d_gates_h = np.concatenate([da_r, da_z, da_n * r], axis=1)  # the past enters n through r
        return d_gates_x, d_gates_h, (dh * z,)
