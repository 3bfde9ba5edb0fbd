"""The layers: `torch.nn.RNNBase` with our forward. Parameters, their names, order and initial values are torch's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, overload

import torch
from torch import Tensor, _VF, nn
from torch.nn.utils.rnn import PackedSequence

from rnn_ext.ops import Stack, recurrent
from rnn_ext.route import reason_for_torch, warn_slow

_torch_op = {"RNN_TANH": _VF.rnn_tanh, "RNN_RELU": _VF.rnn_relu}


class Call(NamedTuple):
    """A call as the kernels take it, arguments checked: 3-D padded or 2-D packed input, 3-D or no initial state."""

    input: Tensor
    hx: Tensor | None
    batch_sizes: Tensor | None
    weights: list[Tensor]
    reason: str | None  # why it goes to torch's own operator, if it does


class _Recurrent(nn.RNNBase):
    def forward(self, input, hx=None):
        """Runs the layer; see the class for shapes and errors."""
        call = self.prepare(input, hx)
        output, h_n = self._run(call)
        if isinstance(input, PackedSequence):
            output = PackedSequence(output, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
            return output, self.permute_hidden(h_n, input.unsorted_indices)
        if input.dim() == 2:
            return output.squeeze(0 if self.batch_first else 1), h_n.squeeze(1)
        return output, h_n

    def prepare(self, input: Tensor | PackedSequence, hx: Tensor | None) -> Call:
        """Checks the arguments of a call and brings them into the kernels' form."""
        if isinstance(input, PackedSequence):
            if hx is not None:
                hx = self.permute_hidden(hx, input.sorted_indices)
            return self._check(input.data, hx, input.batch_sizes)
        dim = input.dim()
        if dim == 3:
            if hx is not None and hx.dim() != 3:
                raise RuntimeError(f"For batched 3-D input, hx should also be 3-D but got {hx.dim()}-D tensor")
            return self._check(input, hx, None)
        if dim != 2:
            raise ValueError(f"{type(self).__name__}: Expected input to be 2D or 3D, got {dim}D tensor instead")
        if hx is not None:
            if hx.dim() != 2:
                raise RuntimeError(f"For unbatched 2-D input, hx should also be 2-D but got {hx.dim()}-D tensor")
            hx = hx.unsqueeze(1)
        return self._check(input.unsqueeze(0 if self.batch_first else 1), hx, None)

    def _weights(self) -> list[Tensor]:
        # Read at every call: _flat_weights goes stale under parametrizations and replaced parameters.
        parameters = self._parameters
        return [parameters[n] if n in parameters else getattr(self, n) for n in self._flat_weights_names]

    def _check(self, input: Tensor, hx: Tensor | None, batch_sizes: Tensor | None) -> Call:
        weights = self._weights()
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
        if hx is not None:
            self.check_hidden_size(hx, self.get_expected_hidden_size(input, batch_sizes))
        if autocast:
            input, hx, weights = _autocast(input, hx, weights)
        reason = reason_for_torch((input, *weights) if hx is None else (input, *weights, hx))
        return Call(input, hx, batch_sizes, weights, reason)

    def _run(self, call: Call) -> tuple[Tensor, Tensor]:
        input, hx, batch_sizes, weights, reason = call
        if reason is None and (batch_sizes is not None or input.numel() > 0):
            time_major = input.transpose(0, 1) if self.batch_first and batch_sizes is None else input
            stack = Stack(self.mode, self.num_layers, self.bidirectional)
            output, h_n = recurrent(time_major, hx, weights, batch_sizes, self._masks(time_major), stack)
            return (output.transpose(0, 1) if time_major is not input else output), h_n
        if reason is not None and not input.is_meta:
            warn_slow(reason)
        return self._run_torch(input, hx, batch_sizes, weights)

    def _masks(self, x: Tensor) -> list[Tensor]:
        """Dropout masks between the layers, drawn from torch's generator in torch's order."""
        if self.dropout == 0 or not self.training or self.num_layers == 1:
            return []
        shape = (*x.shape[:-1], self.hidden_size * (2 if self.bidirectional else 1))
        if self.dropout == 1:
            return [x.new_zeros(shape)] * (self.num_layers - 1)
        keep = 1 - self.dropout
        return [x.new_empty(shape).bernoulli_(keep).div_(keep) for _ in range(self.num_layers - 1)]

    def _run_torch(self, input, hx, batch_sizes, weights):
        """The same call on torch's own operator: what has no kernel, and errors that are torch's to raise."""
        if hx is None:
            shape = self.get_expected_hidden_size(input, batch_sizes)
            hx = torch.zeros(shape, dtype=input.dtype, device=input.device)
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        if batch_sizes is None:
            return _torch_op[self.mode](input, hx, weights, *options, self.batch_first)
        return _torch_op[self.mode](input, batch_sizes, hx, weights, *options)


def _autocast(input: Tensor, hx: Tensor | None, weights: list[Tensor]):
    """What autocast does to a function on its list of lower precision, here the same for every layer."""
    device = input.device.type
    if not torch.is_autocast_enabled(device):
        return input, hx, weights
    dtype = torch.get_autocast_dtype(device)

    def cast(t):
        return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t

    return cast(input), None if hx is None else cast(hx), [cast(w) for w in weights]


class RNN(_Recurrent):
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

    if TYPE_CHECKING:  # for the reader and the type checker alone: another layer of calls would cost half a microsecond

        @overload
        def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

        @overload
        def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...

        def forward(self, input, hx=None): ...

        __call__ = forward
