"""The layers: `torch.nn.RNNBase` with our forward. Parameters, their names, order and initial values are torch's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnn_ext import torch_path
from rnn_ext.ops import Stack, raise_out_of_memory, recurrent
from rnn_ext.route import reason_for_torch, warn_slow


class Call(NamedTuple):
    """A call as the kernels take it, arguments checked: 3-D padded or 2-D packed input, 3-D or no initial states."""

    input: Tensor
    states: tuple[Tensor, ...] | None  # h_0, for an LSTM h_0 and c_0
    batch_sizes: Tensor | None
    weights: list[Tensor]
    reason: str | None  # why it goes to torch's own operator, if it does


class Recurrent(nn.RNNBase):
    """What RNN, LSTM and GRU share: everything but constructors, texts, and hx being one tensor or two."""

    _DIM_ERROR: ClassVar[str]  # torch's words for an input that is neither 2-D nor 3-D

    def _forward(self, input, hx):
        output, *states = self._run(self.prepare(input, hx))
        if isinstance(input, PackedSequence):
            output = PackedSequence(output, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
            if input.unsorted_indices is not None:
                states = [s.index_select(1, input.unsorted_indices) for s in states]
        elif input.dim() == 2:
            output, states = output.squeeze(0 if self.batch_first else 1), [s.squeeze(1) for s in states]
        return output, states[0] if len(states) == 1 else tuple(states)

    def prepare(self, input: Tensor | PackedSequence, hx) -> Call:
        """Checks the arguments of a call and brings them into the kernels' form."""
        states = None if hx is None else self._states(hx)
        if isinstance(input, PackedSequence):
            if states is not None and input.sorted_indices is not None:
                states = tuple(s.index_select(1, input.sorted_indices) for s in states)
            return self._check(input.data, states, input.batch_sizes)
        dim = input.dim()
        if dim not in (2, 3):
            raise ValueError(self._DIM_ERROR.format(dim))
        if states is not None:
            self._check_dims(dim, states)
        if dim == 3:
            return self._check(input, states, None)
        if states is not None:
            states = tuple(s.unsqueeze(1) for s in states)
        return self._check(input.unsqueeze(0 if self.batch_first else 1), states, None)

    def _states(self, hx) -> tuple[Tensor, ...]:
        return (hx,)

    def _check_dims(self, dim: int, states: tuple[Tensor, ...]) -> None:
        if states[0].dim() != dim:
            kind = "batched" if dim == 3 else "unbatched"
            raise RuntimeError(
                f"For {kind} {dim}-D input, hx should also be {dim}-D but got {states[0].dim()}-D tensor"
            )

    def _check_sizes(self, input: Tensor, states: tuple[Tensor, ...], batch_sizes: Tensor | None) -> None:
        self.check_hidden_size(states[0], self.get_expected_hidden_size(input, batch_sizes))

    def _weights(self) -> list[Any]:
        # Read at every call: _flat_weights goes stale under parametrizations and replaced parameters.
        parameters = self._parameters
        return [parameters[n] if n in parameters else getattr(self, n) for n in self._flat_weights_names]

    def _check(self, input: Tensor, states: tuple[Tensor, ...] | None, batch_sizes: Tensor | None) -> Call:
        weights = self._weights()
        if any(w is None for w in weights):
            return Call(input, states, batch_sizes, weights, "a weight is None")
        autocast = torch._C._is_any_autocast_enabled()
        if not autocast and input.dtype != weights[0].dtype:
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({weights[0].dtype}). "
                f"Convert input: input.to({weights[0].dtype}), or convert model: model.to({input.dtype})"
            )
        expected_dim = 3 if batch_sizes is None else 2
        if input.dim() != expected_dim:
            raise RuntimeError(f"input must have {expected_dim} dimensions, got {input.dim()}")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )
        if states is not None:
            self._check_sizes(input, states, batch_sizes)
        if autocast:
            input, states, weights = _autocast(input, states, weights)
        reason = reason_for_torch((input, *weights) if states is None else (input, *weights, *states))
        return Call(input, states, batch_sizes, weights, reason)

    def _run(self, call: Call):
        input, states, batch_sizes, weights, reason = call
        if reason is None and (batch_sizes is not None or input.numel() > 0):
            time_major = input.transpose(0, 1) if self.batch_first and batch_sizes is None else input
            stack = Stack(self.mode, self.num_layers, self.bidirectional)
            h_0, c_0 = (None, None) if states is None else (states[0], states[1] if len(states) > 1 else None)
            masks = self._masks(time_major)
            try:
                out = recurrent(time_major, h_0, c_0, weights, batch_sizes, masks, stack)
            except RuntimeError as error:
                raise_out_of_memory(error)
                if "rnn_ext:" not in str(error):
                    raise
                warn_slow("the kernels refuse the arguments")  # torch's operator has the right words for them
                return self._run_torch(input, states, batch_sizes, weights)
            return out if time_major is input else (out[0].transpose(0, 1), *out[1:])
        if reason is not None and not input.is_meta:
            warn_slow(reason)
        return self._run_torch(input, states, batch_sizes, weights)

    def _masks(self, x: Tensor) -> list[Tensor]:
        """Dropout masks between the layers, drawn from torch's generator in torch's order."""
        if self.dropout == 0 or not self.training or self.num_layers == 1:
            return []
        shape = (*x.shape[:-1], (self.proj_size or self.hidden_size) * (2 if self.bidirectional else 1))
        if not 0 <= self.dropout <= 1:  # set after construction
            raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {self.dropout}")
        if self.dropout == 1:
            return [x.new_zeros(shape)] * (self.num_layers - 1)
        keep = 1 - self.dropout
        return [x.new_empty(shape).bernoulli_(keep).div_(keep) for _ in range(self.num_layers - 1)]

    def _run_torch(self, input, states, batch_sizes, weights):
        """The same call on torch's own operator: what has no kernel, and errors that are torch's to raise."""
        if states is None:
            layers = self.num_layers * (2 if self.bidirectional else 1)
            batch = input.shape[0 if self.batch_first else 1] if batch_sizes is None else batch_sizes[0]
            sizes = (self.proj_size or self.hidden_size, self.hidden_size)[: 2 if self.mode == "LSTM" else 1]
            states = tuple(torch.zeros(layers, batch, n, dtype=input.dtype, device=input.device) for n in sizes)
        options = (weights, self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        return torch_path.call(self.mode, input, states, batch_sizes, *options, batch_first=self.batch_first)


def _autocast(input: Tensor, states: tuple[Tensor, ...] | None, weights: list[Tensor]):
    """What autocast does to a function on its list of lower precision, here the same for every layer."""
    device = input.device.type
    if not torch.is_autocast_enabled(device):
        return input, states, weights
    dtype = torch.get_autocast_dtype(device)

    def cast(t):
        return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t

    states = None if states is None else tuple(cast(s) for s in states)
    return cast(input), states, [cast(w) for w in weights]


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
        device, dtype: of the parameters. float32, float64 and bfloat16 on the CPU run on our kernels, anything
            else on torch's own operator.

    Inputs:
        input: [T, B, I], [B, T, I] with batch_first, [T, I] unbatched, or a PackedSequence.
        hx: initial state [L*D, B, H] ([L*D, H] unbatched); zeros if left out.

    Outputs:
        output: [T, B, D*H], [B, T, D*H], [T, D*H] or a PackedSequence: h_t of the last layer for every step.
        h_n: [L*D, B, H] or [L*D, H]: the last h_t of every layer and direction.

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn.RNN does, with its texts.
    """

    nonlinearity: str
    _DIM_ERROR = "RNN: Expected input to be 2D or 3D, got {}D tensor instead"

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
        super().__init__(f"RNN_{nonlinearity.upper()}", *args, **kwargs)
        self.nonlinearity = nonlinearity

    @overload
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...

    def forward(self, input, hx=None):
        """Runs the layer; see the class for shapes and errors."""
        return self._forward(input, hx)

    if TYPE_CHECKING:
        __call__ = forward


class LSTM(Recurrent):
    r"""Long short-term memory, a drop-in replacement for `torch.nn.LSTM`.

    For each layer, with x_t the input at step t and * the product of elements,

        i = sigmoid(W_i x_t + b_i + U_i h_{t-1} + d_i), likewise f and o
        g = tanh(W_g x_t + b_g + U_g h_{t-1} + d_g)
        c_t = f * c_{t-1} + i * g,   h_t = o * tanh(c_t)

    (S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9, 1997; the formula of
    `torch.nn.LSTM`).

    Args:
        input_size: features of the input, I.
        hidden_size: features of the state, H.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as for `RNN`.
        proj_size: size P of a projection, h_t = W_r (o * tanh(c_t)); 0 for none, where P stands for H below.

    Inputs:
        input: as for `RNN`.
        hx: (h_0, c_0), [L*D, B, P] and [L*D, B, H] (unbatched without B); zeros if left out.

    Outputs:
        output: as for `RNN`, D*P features.
        (h_n, c_n): [L*D, B, P] and [L*D, B, H] (unbatched without B).

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn.LSTM does, with its texts.
    """

    _DIM_ERROR = "LSTM: Expected input to be 2D or 3D, got {}D instead"

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

    def _states(self, hx):
        return tuple(hx) if isinstance(hx, (tuple, list)) else (hx[0], hx[1])

    def _check(self, input, states, batch_sizes):
        if batch_sizes is None and (states is None or len(states) == 2):
            return super()._check(input, states, batch_sizes)
        try:
            if states is None or len(states) == 2:
                return super()._check(input, states, batch_sizes)
        except (RuntimeError, ValueError):
            pass  # torch leaves what is wrong with a packed call to its operator
        return Call(input, states, batch_sizes, self._weights(), "arguments that torch's operator refuses")

    def _check_dims(self, dim, states):
        h, c = states[:2]
        if h.dim() != dim or c.dim() != dim:
            kind = "batched" if dim == 3 else "unbatched"
            raise RuntimeError(
                f"For {kind} {dim}-D input, hx and cx should also be {dim}-D but got ({h.dim()}-D, {c.dim()}-D) tensors"
            )

    def _check_sizes(self, input, states, batch_sizes):
        layers, batch, _ = expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(states[0], expected, "Expected hidden[0] size {}, got {}")
        self.check_hidden_size(states[1], (layers, batch, self.hidden_size), "Expected hidden[1] size {}, got {}")

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
        return self._forward(input, hx)

    if TYPE_CHECKING:
        __call__ = forward


class GRU(Recurrent):
    r"""Gated recurrent unit, a drop-in replacement for `torch.nn.GRU`.

    For each layer, with x_t the input at step t and * the product of elements,

        r = sigmoid(W_r x_t + b_r + U_r h_{t-1} + d_r), likewise z
        n = tanh(W_n x_t + b_n + r * (U_n h_{t-1} + d_n))
        h_t = (1 - z) * n + z * h_{t-1}

    (K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014; the formula of `torch.nn.GRU`).

    Args, inputs, outputs: as for `RNN`, without nonlinearity.

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn.GRU does, with its texts.
    """

    _DIM_ERROR = "GRU: Expected input to be 2D or 3D, got {}D instead"

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
        return self._forward(input, hx)

    if TYPE_CHECKING:
        __call__ = forward
