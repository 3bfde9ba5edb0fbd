"""The compiled operators, and their shapes for tracing.

The operators are private: a call of one outside the Functions of autograd.py and transforms.py would not be
differentiated. On the CPU a plain eager call goes straight to what is behind the operator, past torch's dispatcher,
which costs half as much.

All tensors are time-major: x [T, B, I] or packed [R, I] with batch_sizes [T]; y [T, B, D*P] or [R, D*P], P the size of
h: that of the projection where there is one, else H. The state is h [L*D, B, P], for an LSTM h and c [L*D, B, H]. One
step of one layer and direction may go without the dimensions that are one then: x [B, I], y [B, P], h [B, P], c [B, H].
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnn_ext import flops as flops  # registers what torch counts of the operators
from rnn_ext._load import _C as _C  # registers the operators

_forward_op = torch.ops.rnn_ext.rnn_forward.default
_backward_op = torch.ops.rnn_ext.rnn_backward.default


class CellFacts(NamedTuple):
    """What a cell's header in csrc/cells says of it."""

    gates: int
    states: int  # that run from step to step: h, and c where the cell has one
    tape: int  # numbers per hidden unit and step that are kept for backward


FACTS = {mode: CellFacts(*numbers) for mode, numbers in _C.cells.items()}  # by torch.nn.RNNBase.mode


class Stack(NamedTuple):
    """What a call is, besides its tensors."""

    mode: str  # as in torch.nn.RNNBase
    num_layers: int
    bidirectional: bool
    batch_invariant: bool  # whether the switch was on at forward: backward keeps to it, wherever it runs

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def states(self) -> int:
        """How many run from step to step."""
        return FACTS[self.mode].states

    def tape(self, projected: bool = False) -> int:
        """How many numbers per hidden unit and step are kept for backward, the projection's among them."""
        return FACTS[self.mode].tape + projected

    def of_each(self, weights) -> int:
        """How many of the weights belong to each layer and direction."""
        return len(weights) // (self.num_layers * self.directions)

    def state_sizes(self, weights) -> list[int]:
        """Numbers per sequence of each state: P of h, and H of c where there is one."""
        projected = self.of_each(weights) % 2  # then weight_hr [P, H] is the last of each layer and direction
        recurrent, last = weights[1], weights[-1 if projected else 1]
        if recurrent.dim() != 2 or last.dim() != 2:
            raise RuntimeError("rnn_ext: weight_hh and weight_hr must have 2 dimensions")
        return [recurrent.shape[1], last.shape[1]][: self.states]


def forward(x, h_0, c_0, weights, batch_sizes, masks, stack, save, kept=None):
    """The operator: y, h_n, an LSTM's c_n and, if `save`, what backward needs. The arguments are `recurrent`'s.

    One step [B, I] may come without y, which is h_n; not if something else is saved for backward beside it.
    Arguments that are refused here or in `call.plain_call` go on to the operator, which alone says what is wrong.
    """
    what, invariant = stack[:3], stack.batch_invariant
    if x.is_cpu and not torch.compiler.is_compiling():
        out = _C.forward(x, h_0, c_0, weights, batch_sizes, masks, *what, save, invariant, kept)
        if out is not NotImplemented:
            return out
    return _forward_op(x, h_0, c_0, weights, batch_sizes, masks or None, *what, save, invariant)


def backward(x, h_0, weights, batch_sizes, masks, y, saved, dy, dh_n, dc_n, stack, needs):
    """The operator: the gradients that `needs` asks for (of x, h_0, c_0 and all weights), in the compute type."""
    tensors = (x, h_0, weights, batch_sizes, masks or None, y, saved, dy, dh_n, dc_n)
    what, invariant = stack[:3], stack.batch_invariant
    if torch.compiler.is_compiling():
        return _backward_op(*tensors, *what, *needs, invariant)
    if x.is_cpu:
        out = _C.backward(x, h_0, weights, batch_sizes, masks, y, saved, dy, dh_n, dc_n, *what, *needs, invariant)
        if out is not NotImplemented:
            return out
    try:
        return _backward_op(*tensors, *what, *needs, invariant)
    except RuntimeError as error:
        raise_out_of_memory(error)
        raise


def gradients(saved_tensors, d_outputs, wanted, num_masks, stack, steps=None):
    """What the Function of autograd.py gives in backward, of a plain eager call on the CPU; else NotImplemented.

    With steps (loops.py), the part of the weights is left there, and they have None.
    """
    if not saved_tensors[1].is_cpu:
        return NotImplemented
    return _C.gradients(saved_tensors, d_outputs, wanted, num_masks, *stack, steps)


def gradients_of_loop(steps, dtype):
    """Of weights of that type: the sum over the steps that were left there (loops.py)."""
    try:
        return rounded(_C.gradients_of_loop(steps), dtype)
    except RuntimeError as error:
        raise_out_of_memory(error)
        raise


def rounded(gradients: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Gradients in another type. They leave their list one at a time, for each frees twice the memory that it takes."""
    if torch.compiler.is_compiling():  # which refuses to change a list, and has a plan for memory
        return [gradient.to(dtype) for gradient in gradients]
    return [gradients.pop(0).to(dtype) for _ in range(len(gradients))]


_modes: tuple[Any, ...] = ()  # in each of which somebody may look at every operator, or change what it is given or does


def goes_direct() -> bool:
    """Whether an eager call on the CPU goes past torch's dispatcher just now."""
    return bool(_modes) and not any(mode() for mode in _modes)


def _set_up_direct() -> None:
    """Hands `_C` what its direct calls need of torch; without that, all of them go to the operators."""
    global _modes
    try:
        handles: Any = torch._C._aoti  # type: ignore[attr-defined, unused-ignore]
        ways = handles.unsafe_alloc_void_ptrs_from_tensors, handles.alloc_tensors_by_stealing_from_void_ptrs
        _modes = (
            torch._C._is_tracing,
            torch._C._len_torch_dispatch_stack,
            torch._C._len_torch_function_stack,
            torch._C._are_functorch_transforms_active,
            torch.autograd._profiler_enabled,
        )
    except AttributeError:
        return
    _C.set_up_direct((Tensor, torch.nn.Parameter), *ways, _modes)


_set_up_direct()


def raise_out_of_memory(error: RuntimeError) -> None:
    """Raises torch's error for memory that cannot be had, if that is what the operator's error says."""
    found = re.search(r"rnn_ext: can't allocate (\S+) bytes on device (\S+)", str(error))
    if found:
        size, device = int(float(found[1])), int(found[2])
        torch.empty(size, dtype=torch.uint8, device="cpu" if device < 0 else f"cuda:{device}")
        if device >= 0:
            text = f"CUDA out of memory. Tried to allocate {size} bytes on GPU {device}."
            raise torch.OutOfMemoryError(text) from None
        # It can be had now that the operator has given back what it held: torch's words all the same.
        raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {size} bytes.") from None


@torch.library.register_fake("rnn_ext::rnn_forward")
def _fake_forward(
    x, h_0, c_0, weights, batch_sizes, masks, mode, num_layers, bidirectional, save, batch_invariant
) -> list[Tensor]:
    stack = Stack(mode, num_layers, bidirectional, batch_invariant)
    directions, pairs = stack.directions, num_layers * stack.directions
    projected = stack.of_each(weights) % 2 == 1
    sizes = stack.state_sizes(weights)
    output_size, hidden_size = sizes[0], weights[-1 if projected else 1].shape[1]
    # The batch of a packed input stands in batch_sizes[0]: a size known from data alone.
    states: tuple[Any, ...]
    if batch_sizes is not None:
        rows = x.shape[0]
        states = (pairs, h_0.shape[1] if h_0 is not None else _first_batch_size(batch_sizes))
    elif x.dim() == 2:
        rows, states = x.shape[0], (x.shape[0],)
    else:
        rows, states = x.shape[0] * x.shape[1], (pairs, x.shape[1])
    out = [x.new_empty((*x.shape[:-1], directions * output_size)), *(x.new_empty((*states, size)) for size in sizes)]
    if save and num_layers > 1:
        out.append(x.new_empty((num_layers - 1, rows, directions * output_size)))
    if save and stack.tape(projected) > 0:
        out.append(x.new_empty((pairs, rows, stack.tape(projected), hidden_size)))
    return out


def _first_batch_size(batch_sizes: Tensor):
    if isinstance(batch_sizes, torch._subclasses.FakeTensor):
        return torch.library.get_ctx().new_dynamic_size()
    return int(batch_sizes[0])


@torch.library.register_fake("rnn_ext::rnn_backward")
def _fake_backward(
    x, h_0, weights, batch_sizes, masks, y, saved, dy, dh_n, dc_n, mode, num_layers, bidirectional,
    need_dx, need_dh_0, need_dc_0, need_dw, batch_invariant,
) -> list[Tensor]:  # fmt: skip
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    c_0 = h_0.new_empty((*h_0.shape[:-1], saved[-1].shape[-1])) if need_dc_0 else None  # the tape is [.., H]
    wanted = [x] * need_dx + [h_0] * need_dh_0 + [c_0] * need_dc_0 + list(weights) * need_dw
    return [t.new_empty(t.shape, dtype=dtype) for t in wanted]
