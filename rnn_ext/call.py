"""What layers and cells share: a call in the form the kernels take, and the way it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from rnn_ext import autocast, loops, settings
from rnn_ext.autograd import differentiable, recurrent
from rnn_ext.forms import Form
from rnn_ext.frozen import kept_weights
from rnn_ext.ops import _C, Stack, raise_out_of_memory
from rnn_ext.route import reason_for_torch, warn_slow

UNCHECKED = "torch's operator is to judge these arguments"  # a Call.reason: none of our checks can speak in its words

REFUSED = "the kernels refuse the arguments"


class Call(NamedTuple):
    """A call whose arguments are checked. Time comes first whatever batch_first says."""

    input: Tensor  # [T, B, I], a cell's [B, I] or, with batch_sizes, packed [R, I]
    states: Sequence[Tensor] | None  # h_0, for an LSTM h_0 and c_0, each [L*D, B, H], a cell's [B, H]
    batch_sizes: Tensor | None  # as in a PackedSequence
    weights: list[Any]
    stack: Stack
    reason: str | None  # why it goes to torch's own operator, if it does


def read_weights(module: nn.Module, names: Iterable[str]) -> list[Any]:
    """The weights as they are now: a list kept from before goes stale under parametrizations and replaced weights."""
    parameters = module._parameters
    return [parameters[n] if n in parameters else getattr(module, n) for n in names]


def as_call(
    input: Tensor,
    states: Sequence[Tensor] | None,
    batch_sizes: Tensor | None,
    weights: list[Any],
    stack: tuple[str, int, bool],
    reason: str | None = None,
) -> Call:
    """A call of these arguments, as autocast would have them; a reason given sends it to torch's operator as it is.

    stack: what a Stack begins with.
    """
    if reason is None:
        if autocast.is_enabled():
            input, cast, weights = autocast.cast_call(input, states or (), weights)
            states = None if states is None else cast
        if input.numel() == 0:
            reason = "the input is empty"
        else:
            reason = reason_for_torch((input, *weights) if states is None else (input, *weights, *states))
    return Call(input, states, batch_sizes, weights, Stack(*stack, settings.is_batch_invariant()), reason)


def plain_call(
    module: Any,
    x: Any,
    hx: Any,
    batch_sizes: Any,
    form: Form,
    names: Sequence[str],
    stack: tuple[str, int, bool],
    state_size: int,
) -> Any:
    """What `run` gives for a plain call that nobody but the kernels has checked, in its own form; None for any other.

    Checks in Python take as long as a small layer: this way they are for calls that are not plain or not right. Nothing
    has happened when the answer is None: weights that have to be computed are left to the long way.

    Args:
        module: a layer or cell.
        x, hx: input and state in this form, the state as the module takes it but in the order of the packed rows; or
            anything else.
        batch_sizes: as in a PackedSequence, or None.
        form: that x must have.
        names: of the parameters; the last two may be None.
        stack: what a Stack begins with.
        state_size: of h.
    """
    if is_compiling() or forward_ad._current_level >= 0:
        return None
    sizes = module.input_size, module.hidden_size, state_size
    may_save = settings.checkpoint_steps() is None and not torch.is_inference_mode_enabled()
    batch_invariant = settings.is_batch_invariant()
    parameters = module._parameters
    if autocast.is_enabled():
        cast = autocast.cast_plain(x, hx, parameters, names)
        if cast is None:
            return None
        x, hx, parameters = cast
    how = batch_invariant, kept_weights(module), may_save
    found = _C.plain_call(x, hx, batch_sizes, *form, parameters, names, *stack, *sizes, *how)
    if type(found) is list:
        return found
    if found is NotImplemented:
        return None
    outputs, x, states, weights = found  # somebody asks for a gradient
    h_0, c_0 = (*form.states(states), None, None)[:2]
    x = form.input(x)
    token = None if batch_sizes is not None else loops.token(x, weights, stack)
    results = differentiable(outputs, x, h_0, c_0, weights, batch_sizes, Stack(*stack, batch_invariant), token)
    return form.results(results)


def is_refusal(error: RuntimeError) -> bool:
    """Whether an error is one of the kernels' own checks."""
    return "rnn_ext:" in str(error)


def run(call: Call, masks: list[Tensor], on_torch: Callable[[Call], Any], kept: Any) -> Any:
    """Output and final states: from the kernels, or from `on_torch` for what they do not take; `kept`: frozen.py."""
    input, states, batch_sizes, weights, stack, reason = call
    if reason is None:
        h_0, c_0 = (None, None) if states is None else (states[0], states[1] if len(states) > 1 else None)
        try:
            return recurrent(input, h_0, c_0, weights, batch_sizes, masks, stack, kept)
        except RuntimeError as error:
            raise_out_of_memory(error)
            if not is_refusal(error):
                raise
            reason = REFUSED
    out = on_torch(call)  # raises in torch's words what is wrong with the arguments
    if input.numel() > 0 and not input.is_meta:  # else there is nothing to be slow at
        warn_slow(reason)
    return out
