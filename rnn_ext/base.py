"""What RNN, LSTM and GRU share: `torch.nn.RNNBase` with our forward, and torch's checks of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.backends import mkldnn
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence

from rnn_ext import torch_path
from rnn_ext.call import UNCHECKED, Call, as_call, plain_call, read_weights, run
from rnn_ext.capture import Captured, as_leaf, proxy_in
from rnn_ext.forms import BATCH_FIRST, ONE_SEQUENCE, PACKED, TIME_FIRST, Form
from rnn_ext.frozen import kept_weights
from rnn_ext.ops import FACTS


def _with_generator(input: Tensor, on_torch: Callable) -> Callable:
    """on_torch as if the generator had not been used since."""
    if is_compiling() or (input.is_cuda and torch.cuda.is_current_stream_capturing()):
        return on_torch  # a generator has no state to be read then
    generator = torch.cuda if input.is_cuda else torch
    device = (input.device,) if input.is_cuda else ()
    state = generator.get_rng_state(*device)

    def with_generator(call: Call) -> Any:
        generator.set_rng_state(state, *device)
        return on_torch(call)

    return with_generator


def _packed_like(input: PackedSequence, output: Tensor) -> PackedSequence:
    """The output of a packed call."""
    if input.unsorted_indices is None and input.sorted_indices is not None:
        return PackedSequence(output, *input[1:])  # which finds the inverse
    # The constructor would check what is right here, for a tenth of the time of a small call.
    return PackedSequence._make((output, *input[1:]))


class Recurrent(Captured, nn.RNNBase):
    """A layer but for its constructor, its texts, and whether hx is one tensor or two.

    Parameters, their names, order and initial values are torch's. There are no attributes beyond torch's either, so
    that a module can change its class for torch's and back. What the class has beyond torch's begins with `_ext`, so
    that a subclass may use all other names.
    """

    _EXT_DIM_ERROR: ClassVar[str]  # torch's words for an input that is neither 2-D nor 3-D
    _EXT_STATES: ClassVar[int] = 1

    def _ext_forward(self, input, hx):
        results = self._ext_plain_call(input, hx)
        if results is None:
            proxy = proxy_in(input, hx)
            if proxy is not None:
                return as_leaf(self, proxy, input, hx)
            call = self._ext_prepare(input, hx)
            masks, on_torch = [], self._ext_run_torch
            if call.reason is None and self._ext_drops():
                on_torch = _with_generator(call.input, on_torch)
                masks = self._ext_masks(call)
            results = self._ext_form(input).results(run(call, masks, on_torch, kept_weights(self)))
        output, states = results[0], results[1:]
        if isinstance(input, PackedSequence):
            if input.unsorted_indices is not None:
                states = [s.index_select(1, input.unsorted_indices) for s in states]
            output = _packed_like(input, output)
        return output, states[0] if self._EXT_STATES == 1 else tuple(states)

    def _ext_form(self, input) -> Form:
        if isinstance(input, PackedSequence):
            return PACKED
        return ONE_SEQUENCE if input.dim() == 2 else BATCH_FIRST if self.batch_first else TIME_FIRST

    def _ext_plain_call(self, input, hx) -> Any:
        """Output and states, a packed call's in the order of its rows, of a call without dropout; None if the kernels
        refuse it or the arguments are not plain."""
        x, batch_sizes, sorted_indices = input, None, None
        if isinstance(input, PackedSequence):
            x, batch_sizes, sorted_indices, _ = input
        if type(x) is not Tensor or (self.dropout != 0 and self._ext_drops()):
            return None
        if hx is not None and sorted_indices is not None:
            states = (hx,) if self._EXT_STATES == 1 else hx
            if type(states) is not tuple or any(type(state) is not Tensor for state in states):
                return None
            states = tuple(state.index_select(1, sorted_indices) for state in states)
            hx = states[0] if self._EXT_STATES == 1 else states
        stack, state_size = (self.mode, self.num_layers, self.bidirectional), self.proj_size or self.hidden_size
        return plain_call(self, x, hx, batch_sizes, self._ext_form(input), self._flat_weights_names, stack, state_size)

    def _ext_prepare(self, input: Tensor | PackedSequence, hx) -> Call:
        """Checks the arguments of a call, as the layer takes them, and brings them into the kernels' form.

        Raises what the class says, but for what only torch's operator can judge.
        """
        states = None if hx is None else self._ext_states(hx)
        if isinstance(input, PackedSequence):
            x, batch_sizes, sorted_indices, _ = input
            if states is not None and sorted_indices is not None:
                states = tuple(states[i].index_select(1, sorted_indices) for i in range(self._EXT_STATES))
        else:
            x, batch_sizes, dim = input, None, input.dim()
            if dim not in (2, 3):
                raise ValueError(self._EXT_DIM_ERROR.format(dim))
            if states is not None:
                self._ext_check_dims(dim, states)
            if dim == 2:
                x = x.unsqueeze(0 if self.batch_first else 1)
                states = None if states is None else ONE_SEQUENCE.states([states[i] for i in range(self._EXT_STATES)])
        weights = read_weights(self, self._flat_weights_names)
        refused = self._ext_check(x, states, batch_sizes, weights)
        if self.batch_first and batch_sizes is None:
            x = BATCH_FIRST.input(x)
        return as_call(x, states, batch_sizes, weights, (self.mode, self.num_layers, self.bidirectional), refused)

    def _ext_states(self, hx) -> Any:
        return (hx,)

    def _ext_check_dims(self, dim: int, states: tuple[Tensor, ...]) -> None:
        if states[0].dim() != dim:
            kind = "batched" if dim == 3 else "unbatched"
            raise RuntimeError(
                f"For {kind} {dim}-D input, hx should also be {dim}-D but got {states[0].dim()}-D tensor"
            )

    def _ext_check_sizes(self, input: Tensor, states: tuple[Tensor, ...], batch_sizes: Tensor | None) -> None:
        self.check_hidden_size(states[0], self.get_expected_hidden_size(input, batch_sizes))

    def _ext_check(
        self, input: Tensor, states: tuple[Tensor, ...] | None, batch_sizes: Tensor | None, weights: list[Any]
    ) -> str | None:
        """Raises torch's own errors; what only torch's operator can judge is left to it, with the reason returned."""
        if input.is_nested or any(w is None for w in weights):
            return UNCHECKED
        if input.dtype != weights[0].dtype and not torch._C._is_any_autocast_enabled():
            self.check_input(input, batch_sizes)  # raises in the words of this version of torch
            return UNCHECKED  # but not where a weight has been replaced since torch last looked at it
        expected_dim = 3 if batch_sizes is None else 2
        if input.dim() != expected_dim:
            raise RuntimeError(f"input must have {expected_dim} dimensions, got {input.dim()}")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )
        if not self._ext_fit(weights):
            return UNCHECKED
        # How many sequences are packed is data, which a traced call does not have: the operator checks it then.
        if states is not None and (batch_sizes is None or not is_compiling()):
            self._ext_check_sizes(input, states, batch_sizes)
        return None

    def _ext_drops(self) -> bool:
        return self.dropout != 0 and self.training and self.num_layers > 1

    def _ext_masks(self, call: Call) -> list[Tensor]:
        """Dropout masks between the layers, drawn from torch's generator in torch's order."""
        x = call.input
        shape = (*x.shape[:-1], (self.proj_size or self.hidden_size) * call.stack.directions)
        if not 0 <= self.dropout <= 1:  # set after construction
            raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {self.dropout}")
        if self.dropout == 1:
            return [x.new_zeros(shape)] * (self.num_layers - 1)
        keep = 1 - self.dropout
        # Not of x, not in place: vmap decides whether its samples have the same mask.
        empty = torch.empty(shape, dtype=x.dtype, device=x.device)
        return [empty.bernoulli(keep).div_(keep) for _ in range(self.num_layers - 1)]

    def _ext_run_torch(self, call: Call):
        """The call on torch's own operator: what has no kernel, and errors that are torch's to raise."""
        input, states, batch_sizes = call.input, call.states, call.batch_sizes
        batch: Any = input.size(1) if batch_sizes is None else batch_sizes[0]  # which raises where there are no steps
        if states is None:
            rows = self.num_layers * call.stack.directions
            sizes = (self.proj_size or self.hidden_size, self.hidden_size)[: call.stack.states]
            states = tuple(torch.zeros(rows, batch, n, dtype=input.dtype, device=input.device) for n in sizes)
        options = (call.weights, self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        hx = states if self._EXT_STATES > 1 else states[0]
        # oneDNN reads beyond the end of matrices of other shapes, where torch's own steps find words. Of its other
        # flags torch would warn, even where they stay as they are.
        off = mkldnn.flags(enabled=False, allow_tf32=None, fp32_precision=None)
        with nullcontext() if self._ext_fit(call.weights) else off:
            return torch_path.layer(self.mode, input, hx, batch_sizes, *options)

    def _ext_fit(self, weights: list[Tensor]) -> bool:
        """Whether the matrices have the shapes that the sizes of the layer ask for."""
        state_size, gates = self.proj_size or self.hidden_size, FACTS[self.mode].gates
        directions = 2 if self.bidirectional else 1
        for name, weight in zip(self._flat_weights_names, weights, strict=True):
            inputs = self.input_size if "_l0" in name else directions * state_size
            columns = {"weight_ih": inputs, "weight_hh": state_size, "weight_hr": self.hidden_size}.get(name[:9])
            rows = state_size if name[:9] == "weight_hr" else gates * self.hidden_size
            if columns is not None and weight is not None and weight.shape != (rows, columns):
                return False
        return True
