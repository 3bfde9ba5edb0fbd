"""The cells: one step of a layer, on the layers' operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from rnn_ext import torch_path
from rnn_ext.call import UNCHECKED, Call, as_call, plain_call, read_weights, run
from rnn_ext.capture import Captured, as_leaf, proxy_in
from rnn_ext.forms import STEP, STEP_OF_ONE
from rnn_ext.frozen import kept_weights

_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_RNN = {"tanh": ("RNN_TANH", 1, False), "relu": ("RNN_RELU", 1, False)}  # by nonlinearity
_LSTM, _GRU = ("LSTM", 1, False), ("GRU", 1, False)


class Cell(Captured, nn.RNNCellBase):
    """What the cells share: everything but constructors and, for an LSTM, hx being two tensors.

    Cells are called in Python loops, so that this path is short. As for layers, there are no attributes beyond torch's.
    """

    _EXT_NAME: ClassVar[str]  # the class in torch's error texts, whatever a subclass is called
    _EXT_STATES: ClassVar[int] = 1

    def _ext_forward(self, input, hx):
        stack, out = self._ext_stack(), None
        if stack is not None and isinstance(input, Tensor):
            form = STEP_OF_ONE if input.dim() == 1 else STEP
            out = plain_call(self, input, hx, None, form, _WEIGHTS, stack, self.hidden_size)
        if out is None:
            proxy = proxy_in(input, hx)
            if proxy is not None:
                return as_leaf(self, proxy, input, hx)
            form = STEP_OF_ONE if input.dim() == 1 else STEP
            out = form.results(run(self._ext_prepare(input, hx), [], self._ext_run_torch, kept_weights(self)))
        states = out[-self._EXT_STATES :]  # not y: backward needs that one, and a state may be changed in place
        return states[0] if self._EXT_STATES == 1 else tuple(states)

    def _ext_prepare(self, input: Any, hx) -> Call:
        """Checks the arguments of a call and brings them into the kernels' form; wrong sizes are torch's to refuse.

        input, hx: [B, I] or [I], and the state as the cell takes it. Raises what the class says.
        """
        dim = input.dim()
        if dim != 2 and dim != 1:
            raise ValueError(f"{self._EXT_NAME}: Expected input to be 1D or 2D, got {dim}D instead")
        states = None if hx is None else self._ext_states(hx, dim == 2)
        stack = self._ext_stack()
        if stack is None:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        if input.is_nested:
            return as_call(input, states, None, read_weights(self, _WEIGHTS), stack, UNCHECKED)
        if dim == 1:  # unbatched: a batch of one
            input = STEP_OF_ONE.input(input)
            states = None if states is None else STEP_OF_ONE.states(states)
        batch, features = input.shape
        hidden_size = self.hidden_size
        odd = features != self.input_size or hidden_size == 0
        if states is not None:
            state_shape = (batch, hidden_size)
            for state in states:
                odd = odd or state.shape != state_shape
        weights = read_weights(self, _WEIGHTS)
        w_ih, w_hh, b_ih, b_hh = weights
        if b_ih is None and b_hh is None:
            weights = [w_ih, w_hh]
        odd = odd or w_hh is None or w_hh.shape[-1] != hidden_size
        if odd or w_ih is None or (b_ih is None) is not (b_hh is None):
            return as_call(input, states, None, weights, stack, UNCHECKED)
        return as_call(input, states, None, weights, stack)

    def _ext_states(self, hx, batched: bool) -> Sequence[Tensor]:
        if hx.dim() not in (1, 2):
            raise ValueError(f"{self._EXT_NAME}: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        return (hx,)

    def _ext_stack(self) -> tuple[str, int, bool] | None:
        """What a Stack of the cell begins with; None for an RNNCell whose nonlinearity nobody knows."""
        raise NotImplementedError

    def _ext_run_torch(self, call: Call):
        """The call on torch's own operator, its result in the form of the kernels'."""
        x, states = call.input, call.states
        if states is None:
            zeros = torch.zeros(x.size(0), self.hidden_size, dtype=x.dtype, device=x.device)
            states = (zeros,) * call.stack.states
        return torch_path.step(call.stack.mode, x, states, call.weights)


class RNNCell(Cell):
    r"""One step of an Elman RNN with tanh or ReLU, a drop-in replacement for `torch.nn.RNNCell`.

        h' = f(W_ih x + b_ih + W_hh h + b_hh),   f = tanh or ReLU

    (J. L. Elman, "Finding Structure in Time", Cognitive Science 14, 1990; the formula of `torch.nn.RNNCell`).

    Args:
        input_size: features of the input, I.
        hidden_size: features of the state, H.
        bias: whether the cell has b_ih and b_hh.
        nonlinearity: "tanh" or "relu"; anything else fails at the call, as torch's does.
        device, dtype: of the parameters. float32, float64, bfloat16 and float16 run on our kernels, on the
            CPU and where they are built on CUDA; anything else on torch's own operator.

    Inputs, of the parameters' dtype (under autocast of any floating one):
        input: [B, I], or [I] unbatched.
        hx: the state [B, H] or [H]; zeros if left out.

    Outputs, of the same dtype (under autocast of autocast's):
        h': [B, H] or [H].

    Raises:
        ValueError, RuntimeError: as torch.nn.RNNCell does, with its texts.
    """

    __constants__ = ["input_size", "hidden_size", "bias", "nonlinearity"]
    nonlinearity: str
    _EXT_NAME = "RNNCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def _ext_stack(self):
        return _RNN.get(self.nonlinearity)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Runs the step; see the class for shapes and errors."""
        return self._ext_forward(input, hx)

    if TYPE_CHECKING:
        __call__ = forward


class LSTMCell(Cell):
    r"""One step of an LSTM, a drop-in replacement for `torch.nn.LSTMCell`; the formula stands at `LSTM`.

    Args:
        input_size: features of the input, I.
        hidden_size: features of the states, H.
        bias, device, dtype: as for `RNNCell`.

    Inputs, of dtypes as for `RNNCell`:
        input: [B, I], or [I] unbatched.
        hx: (h, c), each [B, H] or [H]; zeros if left out.

    Outputs:
        (h', c'): each [B, H] or [H].

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn.LSTMCell does, with its texts.
    """

    _EXT_NAME = "LSTMCell"
    _EXT_STATES = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def _ext_stack(self):
        return _LSTM

    def _ext_states(self, hx, batched):
        for i, state in enumerate(hx):
            if state.dim() not in (1, 2):
                raise ValueError(f"LSTMCell: Expected hx[{i}] to be 1D or 2D, got {state.dim()}D instead")
        if not batched:
            return hx[0], hx[1]  # of anything with two entries, as torch takes it
        if not isinstance(hx, (tuple, list)):
            raise TypeError(
                f"lstm_cell(): argument 'hx' (position 2) must be tuple of Tensors, not {type(hx).__name__}"
            )
        if len(hx) != 2:
            raise RuntimeError("lstm_cell expects two hidden states")
        return hx

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Runs the step; see the class for shapes and errors."""
        return self._ext_forward(input, hx)

    if TYPE_CHECKING:
        __call__ = forward


class GRUCell(Cell):
    r"""One step of a GRU, a drop-in replacement for `torch.nn.GRUCell`; the formula stands at `GRU`.

    Args:
        input_size: features of the input, I.
        hidden_size: features of the state, H.
        bias, device, dtype: as for `RNNCell`.

    Inputs, of dtypes as for `RNNCell`:
        input: [B, I], or [I] unbatched.
        hx: the state [B, H] or [H]; zeros if left out.

    Outputs:
        h': [B, H] or [H].

    Raises:
        ValueError, RuntimeError: as torch.nn.GRUCell does, with its texts.
    """

    _EXT_NAME = "GRUCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def _ext_stack(self):
        return _GRU

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Runs the step; see the class for shapes and errors."""
        return self._ext_forward(input, hx)

    if TYPE_CHECKING:
        __call__ = forward
