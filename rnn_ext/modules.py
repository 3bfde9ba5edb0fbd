"""The layers: RNN, LSTM and GRU. Their names, parameters and calls are those of `torch.nn`; base.py has the forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnn_ext.base import Recurrent
from rnn_ext.call import UNCHECKED


class RNN(Recurrent):
    r"""Elman RNN with tanh or ReLU, a drop-in replacement for `torch.nn.RNN`.

    For each layer, with x_t the input at step t (the layer below's h_t for upper layers) and h_0 the initial state,

        h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh),   f = tanh or ReLU

    (J. L. Elman, "Finding Structure in Time", Cognitive Science 14, 1990; the formula of `torch.nn.RNN`).

    Args:
        input_size: features of the input, I.
        hidden_size: features of the state, H.
        num_layers: number of stacked layers, L.
        nonlinearity: "tanh" or "relu".
        bias: whether the layers have b_ih and b_hh.
        batch_first: input and output as [B, T, ...]; states are [.., B, H] all the same.
        dropout: probability of dropping an output of every layer but the last, in training mode.
        bidirectional: a second direction that runs backward in time; D = 2.
        device, dtype: of the parameters. float32, float64, bfloat16 and float16 run on our kernels, on the
            CPU and where they are built on CUDA; anything else on torch's own operator.

    Inputs, of the parameters' dtype (under autocast of any floating one):
        input: [T, B, I], [B, T, I] with batch_first, [T, I] unbatched, or a PackedSequence.
        hx: initial state [L*D, B, H] ([L*D, H] unbatched); zeros if left out.

    Outputs, of the same dtype (under autocast of autocast's):
        output: [T, B, D*H], [B, T, D*H], [T, D*H] or a PackedSequence: h_t of the last layer for every step.
        h_n: [L*D, B, H] or [L*D, H]: the last h_t of every layer and direction.

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn.RNN does, with its texts.
    """

    nonlinearity: str
    _EXT_DIM_ERROR = "RNN: Expected input to be 2D or 3D, got {}D tensor instead"

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...

    @overload
    def __init__(self, *args, **kwargs) -> None: ...

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.nonlinearity = nonlinearity  # an override of reset_parameters may ask for it
        super().__init__(f"RNN_{nonlinearity.upper()}", *args, **kwargs)

    @overload
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...

    def forward(self, input, hx=None):
        """Runs the layer; see the class for shapes and errors."""
        return self._ext_forward(input, hx)

    if TYPE_CHECKING:
        __call__ = forward


class LSTM(Recurrent):
    r"""Long short-term memory, a drop-in replacement for `torch.nn.LSTM`.

    For each layer, with x_t the input at step t and * the product of elements,

        a_i, a_f, a_g, a_o = the four parts, in this order, of  W_ih x_t + b_ih + W_hh h_{t-1} + b_hh
        i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o),   g = tanh(a_g)
        c_t = f * c_{t-1} + i * g,   h_t = o * tanh(c_t)

    (S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9, 1997; the formula of
    `torch.nn.LSTM`).

    Args:
        input_size: features of the input, I.
        hidden_size: features of the state, H.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as for `RNN`.
        proj_size: size P of a projection, h_t = W_hr (o * tanh(c_t)); 0 for none, where P stands for H below.

    Inputs, of dtypes as for `RNN`:
        input: as for `RNN`.
        hx: (h_0, c_0), [L*D, B, P] and [L*D, B, H] (unbatched without B); zeros if left out.

    Outputs, of the same dtype (under autocast of autocast's):
        output: as for `RNN`, D*P features.
        (h_n, c_n): [L*D, B, P] and [L*D, B, H] (unbatched without B).

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn.LSTM does, with its texts.
    """

    _EXT_DIM_ERROR = "LSTM: Expected input to be 2D or 3D, got {}D instead"
    _EXT_STATES = 2

    # torch has them for an LSTM's pair of states, and a forward that a user has copied from torch calls them.
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...

    @overload
    def __init__(self, *args, **kwargs) -> None: ...

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)

    def _ext_states(self, hx):
        return hx  # whatever it is: torch too looks at hx[0] and hx[1], and leaves the rest to its operator

    def _ext_check(self, input, states, batch_sizes, weights):
        try:
            reason = super()._ext_check(input, states, batch_sizes, weights)
        except Exception:
            if batch_sizes is None:
                raise
            return UNCHECKED  # torch checks nothing of a packed call
        pair = isinstance(states, (tuple, list)) and len(states) == 2
        return reason if pair or states is None else UNCHECKED

    def _ext_check_dims(self, dim, states):
        h, c = states[0], states[1]
        if h.dim() != dim or c.dim() != dim:
            kind = "batched" if dim == 3 else "unbatched"
            raise RuntimeError(
                f"For {kind} {dim}-D input, hx and cx should also be {dim}-D but got ({h.dim()}-D, {c.dim()}-D) tensors"
            )

    def _ext_check_sizes(self, input, states, batch_sizes):
        h_size = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(states[0], h_size, "Expected hidden[0] size {}, got {}")
        c_size = self.get_expected_cell_size(input, batch_sizes)
        self.check_hidden_size(states[1], c_size, "Expected hidden[1] size {}, got {}")

    @overload
    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

    def forward(self, input, hx=None):
        """Runs the layer; see the class for shapes and errors."""
        return self._ext_forward(input, hx)

    if TYPE_CHECKING:
        __call__ = forward


class GRU(Recurrent):
    r"""Gated recurrent unit, a drop-in replacement for `torch.nn.GRU`.

    For each layer, with x_t the input at step t and * the product of elements,

        x_r, x_z, x_n = the three parts, in this order, of  W_ih x_t + b_ih
        a_r, a_z, a_n = those of  W_hh h_{t-1} + b_hh
        r, z = sigmoid(x_r + a_r), sigmoid(x_z + a_z),   n = tanh(x_n + r * a_n)
        h_t = (1 - z) * n + z * h_{t-1}

    (K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014; the formula of `torch.nn.GRU`).

    Args:
        input_size: features of the input, I.
        hidden_size: features of the state, H.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as for `RNN`.

    Inputs, of the parameters' dtype (under autocast of any floating one):
        input: [T, B, I], [B, T, I] with batch_first, [T, I] unbatched, or a PackedSequence.
        hx: initial state [L*D, B, H] ([L*D, H] unbatched); zeros if left out.

    Outputs, of the same dtype (under autocast of autocast's):
        output: [T, B, D*H], [B, T, D*H], [T, D*H] or a PackedSequence: h_t of the last layer for every step.
        h_n: [L*D, B, H] or [L*D, H]: the last h_t of every layer and direction.

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn.GRU does, with its texts.
    """

    _EXT_DIM_ERROR = "GRU: Expected input to be 2D or 3D, got {}D instead"

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...

    @overload
    def __init__(self, *args, **kwargs) -> None: ...

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)

    @overload
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...

    def forward(self, input, hx=None):
        """Runs the layer; see the class for shapes and errors."""
        return self._ext_forward(input, hx)

    if TYPE_CHECKING:
        __call__ = forward
